"""What `doctor` looks at, in order. Imported by `lazy` alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from modelcache.cli.findings import Finding, broken
from modelcache.cli.machine_checks import check_authorities, check_clock, check_extras, check_hashing, check_proxies, check_python
from modelcache.cli.store_checks import check_file_system, check_room, check_store
from modelcache.config import Config

CHECKS: tuple[tuple[str, Callable[[Config, Mapping[str, str]], list[Finding]]], ...] = (
    ("python", lambda config, environ: check_python()),
    ("file system", lambda config, environ: check_file_system(config)),
    ("room", lambda config, environ: check_room(config)),
    ("store", lambda config, environ: check_store(config)),
    ("hashing", lambda config, environ: check_hashing()),
    ("extras", lambda config, environ: check_extras()),
    ("certificates", lambda config, environ: check_authorities(config)),
    ("proxy", lambda config, environ: check_proxies(config.proxies)),
    ("clock", lambda config, environ: check_clock()),
)


def examine(environ: Mapping[str, str], config: Config) -> list[Finding]:
    """Every finding. A check that the machine refuses is a finding too."""
    found: list[Finding] = []
    for name, check in CHECKS:
        try:
            found += check(config, environ)
        except OSError as error:
            what = f"{error.strerror or type(error).__name__}: {error.filename or config.root}"
            found.append(broken(name, f"can't be looked at: {what}", "run as the store's owner, and check the disk"))
    return found
