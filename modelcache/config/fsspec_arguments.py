"""Arguments of fsspec's filesystems, by scheme, as the file and variables write them."""

from __future__ import annotations

import re
from typing import Any

from modelcache.config.kinds import Free, MapOf
from modelcache.config.setting import Environ
from modelcache.errors import BadConfig

PREFIX = "MODELCACHE_FSSPEC_"
"""Before the scheme in capitals; the variable holds JSON."""
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


def _scheme(name: str) -> None:
    if not _SCHEME.fullmatch(name):
        raise BadConfig(f"not a scheme in lower case: {name[:40]!a}")


STORAGE = MapOf(Free(), "<scheme>", _scheme)
"""Scheme → arguments. All of them count as secret, for nobody here knows which are."""


def storage_of_variables(environ: Environ) -> dict[str, dict[str, Any]] | None:
    """By scheme, what the variables say; None if there is none. Raises BadConfig."""
    found = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or not text:
            continue
        scheme = name.removeprefix(PREFIX).lower()
        try:
            _scheme(scheme)
            found[scheme] = STORAGE.kind.of_text(text)
        except BadConfig as error:
            raise BadConfig(f"{name}: {error.message}", hint=error.hint) from None
    return found or None
