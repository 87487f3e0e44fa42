"""How much an archive may unpack to."""

from __future__ import annotations

from dataclasses import dataclass

from modelcache.errors import BadArchive
from modelcache.units import MIB, TIB, format_bytes

MAX_ENTRIES = 100_000
"""Headers of every kind; kept in memory with their names while the archive is unpacked."""
MAX_NAMES_CHARACTERS = 32 << 20
"""Of all names of files and targets of links, some 300 for each of `MAX_ENTRIES`: packed they take next to nothing."""
ALWAYS_BYTES = 64 * MIB
"""Under this no ratio is looked at: small archives of zeros are no harm."""
MAX_NAME_BYTES = 4096
"""PATH_MAX; what a snapshot may hold is less (`modelcache.paths`)."""


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Limits on what one archive unpacks to; the store's own limits hold besides.

    Attributes:
        max_bytes: of all that it expands to.
        max_ratio: of that to the archive's own size. Deflate reaches 1032 (zlib, Technical Details); weights stay under 2.
        max_entries: files, directories, links and extended headers.
    """

    max_bytes: int = TIB
    max_ratio: float = 200.0
    max_entries: int = MAX_ENTRIES

    def bytes_of(self, archive_bytes: int) -> int:
        """What an archive of this size may expand to."""
        return min(self.max_bytes, max(ALWAYS_BYTES, int(archive_bytes * self.max_ratio)))

    def check_bytes(self, expanded_bytes: int, archive_bytes: int, address: str) -> None:
        """Raises BadArchive: it expands to more than it may."""
        allowed = self.bytes_of(archive_bytes)
        if expanded_bytes > allowed:
            raise BadArchive(
                f"the archive of {format_bytes(archive_bytes)} expands to more than {format_bytes(allowed)}",
                address=address,
                expected=f"at most {allowed} bytes",
                got=f"{expanded_bytes} bytes",
                hint="if it is right, raise MODELCACHE_ARCHIVE_MAX_BYTES or MODELCACHE_ARCHIVE_MAX_RATIO",
            )

    def check_entries(self, entries: int, address: str) -> None:
        """Raises BadArchive: it has more entries than it may."""
        if entries > self.max_entries:
            raise BadArchive(
                f"the archive has more than {self.max_entries:,} entries", address=address, expected=f"at most {self.max_entries} entries"
            )


DEFAULT_LIMITS = ArchiveLimits()
