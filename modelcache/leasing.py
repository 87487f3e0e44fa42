"""Named holds on snapshots: the part of `ModelCache` that keeps what somebody uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from modelcache.abc.store import Lease, SnapshotInfo
from modelcache.abc.upkeep import Upkeep


class Leasing(ABC):
    """Leases end at their time or when released, pins when somebody ends them. Both outlive the process that took them."""

    _store: Upkeep

    @abstractmethod
    def find(self, name: str) -> SnapshotInfo:
        """The snapshot of a URI, a digest or its first digits."""

    def lease(self, name: str, *, holder: str, ttl_s: float) -> Lease:
        """Keep a snapshot for `ttl_s` seconds, unless renewed or released before.

        Raises:
            NotCached: nothing here has that name. AmbiguousName. StoreError.
        """
        return self._store.lease(self.find(name).digest, holder=holder, ttl_s=ttl_s)

    def renew(self, lease_id: str, *, ttl_s: float) -> Lease:
        """Let a lease end `ttl_s` seconds from now. Raises NotCached: it has ended already."""
        return self._store.renew(lease_id, ttl_s=ttl_s)

    def release(self, lease_id: str) -> bool:
        """End a lease; False: it had ended before."""
        return self._store.release(lease_id)

    def leases(self) -> Sequence[Lease]:
        """Every living hold, pins among them."""
        return self._store.leases()

    def pin(self, name: str, *, holder: str = "user") -> Lease:
        """Keep a snapshot until it is unpinned."""
        return self._store.pin(self.find(name).digest, holder=holder)

    def unpin(self, name: str, *, holder: str | None = None) -> int:
        """End the pins of one holder, or all; how many there were."""
        return self._store.unpin(self.find(name).digest, holder=holder)
