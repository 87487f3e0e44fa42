"""Through the page cache or around it: by who reads the bytes next (`docs/design/002-write-route.md`)."""

from __future__ import annotations

from pathlib import Path

from modelcache.abc.ingest import Route
from modelcache.units import KIB

MEMORY_SHARE = 0.5
"""A model goes through the page cache only if it takes less than this share of the memory that is free for it: beyond that, its
first bytes are gone before its last arrive, and a serving neighbour's pages with them."""


def route_for_reader(size_bytes: int, available_bytes: int) -> Route:
    """For bytes that somebody reads next: BUFFERED when they fit in free memory, else DIRECT, as for all others."""
    return Route.BUFFERED if size_bytes <= available_bytes * MEMORY_SHARE else Route.DIRECT


def available_memory_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """The kernel's estimate of what can be used without swapping (`MemAvailable`, proc(5)); 0 where there is none to read."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * KIB
    return 0
