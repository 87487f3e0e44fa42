"""The holds of `MemoryStore`: leases, pins, and what a block of a test holds."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import replace

from modelcache.abc.store import Lease, LeaseKind, expect_lease_id
from modelcache.digest import Digest
from modelcache.errors import BadConfig, NotCached


class MemoryLeases:
    """Who holds which snapshot. Whether there is such a snapshot, its store knows.

    Attributes:
        last_used: when each was; by holds, and by what its store adds.
    """

    def __init__(self, clock: Callable[[], float], lock: threading.RLock) -> None:
        self._clock = clock
        self._lock = lock
        self._leases: dict[str, Lease] = {}
        self.last_used: dict[Digest, float] = {}

    def living(self) -> list[Lease]:
        with self._lock:
            return [lease for lease in self._leases.values() if self._lives(lease)]

    def all_ids(self) -> list[str]:
        """Of ended ones too, until they are forgotten."""
        return list(self._leases)

    def add(self, manifest: Digest, holder: str, kind: LeaseKind, expires_at_s: float | None, lease_id: str | None = None) -> Lease:
        """Raises BadConfig: an id that no lease has, or one that another has."""
        with self._lock:
            if lease_id is not None:
                expect_lease_id(lease_id)
                if any(lease.id == lease_id for lease in self.living()):
                    raise BadConfig("a lease of this id is in force", got=lease_id)
            lease = Lease(lease_id or secrets.token_hex(8), manifest, holder, kind, self._clock(), expires_at_s)
            self._leases[lease.id] = lease
            self.last_used[manifest] = lease.created_at_s
            return lease

    def end(self, lease: Lease) -> None:
        self._leases.pop(lease.id, None)

    def forget_ended(self) -> None:
        with self._lock:
            self._leases = {lease.id: lease for lease in self.living()}

    def renew(self, lease_id: str, ttl_s: float) -> Lease:
        with self._lock:
            found = self._leases.get(lease_id)
            if found is None or found.kind is not LeaseKind.LEASE or not self._lives(found):
                raise NotCached(f"no living lease `{lease_id}`")
            self._leases[lease_id] = replace(found, expires_at_s=self._clock() + ttl_s)
            self.last_used[found.manifest] = self._clock()
            return self._leases[lease_id]

    def release(self, lease_id: str) -> bool:
        with self._lock:
            found = self._leases.get(lease_id)
            if found is None or found.kind is not LeaseKind.LEASE or not self._lives(found):
                return False
            del self._leases[lease_id]
            self.last_used[found.manifest] = self._clock()
            return True

    def pins(self, manifest: Digest, holder: str | None = None) -> list[Lease]:
        """Of one holder, or of all."""
        with self._lock:
            pins = [lease for lease in self._leases.values() if lease.kind is LeaseKind.PIN and lease.manifest == manifest]
            return [lease for lease in pins if holder in (None, lease.holder)]

    def _lives(self, lease: Lease) -> bool:
        return lease.expires_at_s is None or lease.expires_at_s > self._clock()
