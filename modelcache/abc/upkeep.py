"""What a store on a disk is asked to keep itself sound: parts that can be saved, trees that can be put right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from modelcache.abc.store import RefHead, Store, VerifyReport
from modelcache.digest import Digest
from modelcache.patience import Cancellation


@dataclass(frozen=True, slots=True)
class ScrubLimits:
    """How much a scrub may read.

    Attributes:
        budget_bytes: no further blob is begun once so much was read; None: all blobs.
        bytes_per_s: on average; None: as fast as the lowest priority gets it.
    """

    budget_bytes: int | None = None
    bytes_per_s: float | None = None


class Upkeep(Store, Protocol):
    """A store that can repair what a disk damaged. Nothing here writes into a published inode."""

    @property
    def read_only(self) -> bool: ...

    def scrub(self, limits: ScrubLimits, cancel: Cancellation, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """`verify` a part of the store behind everybody's back: blobs that were longest not read back first, so that the next scrub
        goes on where this one ended. It takes no pages out of the page cache and brings none in, where O_DIRECT works."""
        ...

    def verified_at_s(self, manifest: Digest) -> float | None:
        """When the file of this snapshot that was longest not read back was (Unix time); None if one never was since it arrived.

        Raises:
            NotCached, DamagedRecord.
        """
        ...

    def heads(self) -> list[RefHead]:
        """The heads of all refs, those whose list of files is damaged among them."""
        ...

    def quarantined(self) -> frozenset[Digest]:
        """Contents of which a damaged inode is kept aside."""
        ...

    def salvage(self, digest: Digest, cancel: Cancellation) -> Iterator[tuple[int, memoryview]]:
        """The chunks that the damaged inodes of a content still hold as its chunk table says: index and bytes, each once.

        A view is good until the next. Nothing where the table is missing or damaged, too.
        """
        ...

    def mend(self, manifest: Digest) -> tuple[str, ...]:
        """Put the tree of a published snapshot right from blobs that are here; the paths that were changed.

        A file that is no inode of its blob gets a link to it by a rename: who has the old inode open keeps reading that one. What
        does not belong to the snapshot is removed. A file whose blob is not here stays as it is.

        Raises:
            NotCached: it is not published.
        """
        ...
