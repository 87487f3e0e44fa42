"""`modelcache rm`: remove models."""

from __future__ import annotations

from modelcache.cli import documents
from modelcache.cli.arguments import DryRun, Names
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.session import Session
from modelcache.units import format_bytes


def rm(session: Session, names: Names, dry_run: DryRun = False) -> ExitCode:
    """Remove models that nobody holds.

    A URI that shares its model with other URIs is only forgotten, and the model stays for them. So is one whose model damage took out of
    service. The first failure ends the command.
    """
    removed: list[dict[str, object]] = []
    session.result |= {"removed": removed, "freed_bytes": 0, "dry_run": dry_run}
    word = "would free" if dry_run else "freed"
    freed_bytes = 0
    with session.open_cache(looks=True) as cache:
        for name in names:
            evicted = cache.evict(name, dry_run=dry_run)
            removed.append(documents.of_evicted(evicted))
            freed_bytes += evicted.freed_bytes
            session.result["freed_bytes"] = freed_bytes
            what = ", ".join(evicted.uris) or str(evicted.digest)
            session.output.line(f"{what}: {word} {format_bytes(evicted.freed_bytes)}")
    session.finish()
    return ExitCode.OK
