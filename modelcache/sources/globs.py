"""Patterns where names belong, as a shell has them: `s3://b/m/*.safetensors`."""

from __future__ import annotations

import re
from dataclasses import replace

from modelcache.uri import StorageUri

_GLOB = re.compile(r"[*?]|\[[^/\]]+\]")


def hint_of_glob(uri: StorageUri) -> str | None:
    """The next step for who meant a pattern by a path under which there is nothing; None: it has nothing of a pattern."""
    parts = uri.path.split("/")
    first = next((number for number, part in enumerate(parts) if _GLOB.search(part)), None)
    if first is None:
        return None
    if uri.scheme in ("http", "https"):
        return "a web server doesn't tell which names fit a pattern: name each file by itself"
    place = "/".join(parts[:first]) or ("/" if uri.scheme == "file" else "")
    meant = replace(uri, path=place, revision=uri.revision if uri.scheme == "hf" else None, include=("/".join(parts[first:]),))
    return f"names are taken as they stand, and patterns stand behind a `#`: {meant}"
