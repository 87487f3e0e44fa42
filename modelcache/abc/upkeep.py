"""What a store on a disk is asked to keep itself sound: parts that can be saved, trees that can be put right."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from modelcache.abc.snapshot import Ref, RefHead
from modelcache.abc.store import Store, VerifyReport
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


@dataclass(frozen=True, slots=True)
class DedupeReport:
    """What `dedupe` did, in bytes of files.

    Attributes:
        possible: whether the file system can share blocks between files.
        looked_chunks: chunks whose marks were compared.
        shared_bytes: that use others' blocks since now.
        already_bytes: that did before.
        held_bytes: equal, but held on both sides: left for another time.
        differing_bytes: of equal marks whose bytes differ, says the kernel: one side is damaged, and `verify` finds which.
    """

    possible: bool
    looked_chunks: int = 0
    shared_bytes: int = 0
    already_bytes: int = 0
    held_bytes: int = 0
    differing_bytes: int = 0


class Upkeep(Store, Protocol):
    """A store that can repair what a disk damaged. Nothing here writes into a published inode."""

    @property
    def read_only(self) -> bool: ...

    @property
    def address(self) -> str:
        """What errors name it by."""
        ...

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

    def dedupe(self, cancel: Cancellation, progress: Callable[[DedupeReport], None] | None = None) -> DedupeReport:
        """Have equal chunks of different blobs use the same blocks, at lowest priority; files and their bytes don't change."""
        ...

    def heads(self) -> list[RefHead]:
        """The heads of all refs, those whose list of files is damaged among them."""
        ...

    def out_of_service(self, besides: Collection[Digest] = ()) -> list[Ref]:
        """Refs whose snapshots damage took out of service: something that they show is in quarantine, or all of it is here though the
        snapshot is not. Those to snapshots of `besides` in any case."""
        ...

    def salvage(self, digest: Digest, cancel: Cancellation, compartment: str = "") -> Iterator[tuple[int, memoryview]]:
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
