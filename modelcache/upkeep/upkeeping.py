"""What a cache does to keep its store sound and small: verify, scrub, repair, block sharing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from modelcache.abc.store import OutOfService, SnapshotInfo, VerifyReport, by_snapshot
from modelcache.abc.upkeep import DedupeReport, ScrubLimits, Upkeep
from modelcache.digest import digits_of
from modelcache.errors import NotCached
from modelcache.fetch.engine import FetchEngine
from modelcache.patience import Cancellation
from modelcache.upkeep.repair import OpenSources, Repair, RepairReport
from modelcache.uri import parse_uri

BytesProgress = Callable[[int, int], None]
"""Called with the bytes that are read and how many there are in all."""


class Upkeeping(ABC):
    """The part of `ModelCache` that finds what a disk damaged and puts it right."""

    _store: Upkeep
    _engine: FetchEngine

    @abstractmethod
    def find(self, name: str) -> SnapshotInfo:
        """The snapshot of a URI, a digest or its first digits."""

    @property
    @abstractmethod
    def _open_sources(self) -> OpenSources:
        """The sources of a URI, with the credentials of this process."""

    def verify(self, name: str | None = None, *, progress: BytesProgress | None = None, cancel: Cancellation | None = None) -> VerifyReport:
        """Read every byte of a snapshot (or of all) from the disk and compare; damage is taken out of service and reported.

        Raises:
            NotCached: nothing has this name, and nothing that is out of service had it. AmbiguousName. StoreError, Cancelled.
        """
        try:
            digest = None if name is None else self.find(name).digest
        except NotCached:
            gone = [item for item in self.out_of_service() if _leads_to(str(name), item)]
            if not gone:
                raise
            return VerifyReport(0, 0, 0, (), tuple(gone))
        return self._store.verify(digest, cancel or Cancellation(), progress)

    def out_of_service(self) -> Sequence[OutOfService]:
        """What damage took away: it comes back by `ensure` or `repair`, and `evict` of its URIs forgets it."""
        return by_snapshot(self._store.out_of_service())

    def scrub(
        self,
        *,
        budget_bytes: int | None = None,
        bytes_per_s: float | None = None,
        progress: BytesProgress | None = None,
        cancel: Cancellation | None = None,
    ) -> VerifyReport:
        """`verify` in the background: at lowest priority, what was longest not read back first, until the budget is used up.

        Args:
            budget_bytes: the blob in which it is used up is still read to its end; None: everything.
            bytes_per_s: read no more on average.
        """
        return self._store.scrub(ScrubLimits(budget_bytes, bytes_per_s), cancel or Cancellation(), progress)

    def verified_at_s(self, name: str) -> float | None:
        """When all of a snapshot had last been read back from the disk and found right (Unix time); None: not since it arrived."""
        return self._store.verified_at_s(self.find(name).digest)

    def dedupe(self, *, progress: Callable[[DedupeReport], None] | None = None, cancel: Cancellation | None = None) -> DedupeReport:
        """Have equal chunks of different blobs use the same blocks of the disk, at lowest priority. No file and no byte changes; what
        somebody holds keeps the blocks that it has. Where the file system can't, the report says so."""
        return self._store.dedupe(cancel or Cancellation(), progress)

    def repair(
        self,
        name: str | None = None,
        *,
        verified: VerifyReport | None = None,
        progress: BytesProgress | None = None,
        cancel: Cancellation | None = None,
    ) -> RepairReport:
        """`verify`, then put right what it finds, and what earlier ones found: bad chunks are fetched again from any origin that a ref
        names and that still has them, snapshots that were withdrawn come back, and those that are held get the repaired files in
        place of the damaged ones.

        Args:
            verified: what a `verify` or `scrub` just found; None: look now.

        Raises:
            NotCached, AmbiguousName: as `find`.
            StoreError, Cancelled. What an origin does wrong is in the report.
        """
        stop = cancel or Cancellation()
        repair = Repair(self._store, self._engine, self._open_sources, stop)
        uri = None if name is None or digits_of(name) is not None else str(parse_uri(name)[0])
        return repair.run(verified or self.verify(name, progress=progress, cancel=stop), uri)


def _leads_to(name: str, item: OutOfService) -> bool:
    digits = digits_of(name)
    return str(parse_uri(name)[0]) in item.uris if digits is None else item.digest.hex.startswith(digits)
