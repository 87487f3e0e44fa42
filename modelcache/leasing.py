"""Named holds on snapshots: the part of `ModelCache` that keeps what somebody uses, and removes what nobody does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from modelcache.abc.snapshot import Ref, RefHead, Snapshot
from modelcache.abc.store import CLUSTERS, CollectReport, Evicted, Lease, SnapshotInfo, expect_own
from modelcache.abc.upkeep import Upkeep
from modelcache.digest import HEX_LENGTHS, Algorithm, Digest, digits_of, sha256
from modelcache.errors import NoSpace, NotCached
from modelcache.uri import parse_uri

NAMED = 5
"""Holders in a refusal. A node of a hundred pods has a hundred; `modelcache ls` names all of them."""


class Leasing(ABC):
    """Leases end at their time or when released, pins when somebody ends them. Both outlive the process that took them."""

    _store: Upkeep

    @abstractmethod
    def find(self, name: str) -> SnapshotInfo:
        """The snapshot of a URI, a digest or its first digits."""

    @abstractmethod
    def _refs_of(self, name: str) -> Sequence[Sequence[Ref]]:
        """What a URI is to the owner, place by place."""

    def lease(self, name: str, *, holder: str, ttl_s: float, lease_id: str | None = None) -> Lease:
        """Keep a snapshot for `ttl_s` seconds, unless renewed or released before.

        Args:
            lease_id: as of `Store.lease`.

        Raises:
            NotCached: nothing here has that name. AmbiguousName. BadConfig, StoreError.
        """
        return self._store.lease(self._digest_of(name), holder=holder, ttl_s=ttl_s, lease_id=lease_id)

    def renew(self, lease_id: str, *, ttl_s: float) -> Lease:
        """Let a lease end `ttl_s` seconds from now. Raises NotCached: it has ended already."""
        return self._store.renew(lease_id, ttl_s=ttl_s)

    def release(self, lease_id: str) -> bool:
        """End a lease; False: it had ended before."""
        return self._store.release(lease_id)

    def leases(self) -> Sequence[Lease]:
        """Every living hold, pins among them."""
        return self._store.leases()

    @contextmanager
    def naming_holders(self) -> Iterator[None]:
        """For who may know of everybody: what is refused in this block for want of room says who holds the rest."""
        try:
            yield
        except NoSpace as error:
            raise _with_holders(error, self.leases()) from None

    def pin(self, name: str, *, holder: str = "user") -> Lease:
        """Keep a snapshot until it is unpinned. Raises: as `lease`; BadConfig: the holder's name is one of those of the agent."""
        expect_own(holder)
        return self._store.pin(self._digest_of(name), holder=holder)

    def pin_for_cluster(self, name: str, *, key: str) -> Lease:
        """The same, for a node's agent in its cluster's name."""
        return self._store.pin(self._digest_of(name), holder=f"{CLUSTERS}{key}")

    def unpin(self, name: str, *, holder: str | None = None) -> int:
        """End the pins of one holder, or all; how many there were."""
        return self._store.unpin(self.find(name).digest, holder=holder)

    def used(self, digest: str) -> Snapshot | None:
        """A snapshot by its whole digest, which counts as a use of it; None: it is not here."""
        return self._store.snapshot(self._digest_of(digest))

    def _digest_of(self, name: str) -> Digest:
        """Of what `find` finds. A whole digest says it by itself: what a snapshot takes is counted over all its files."""
        digits = digits_of(name)
        whole = digits is not None and len(digits) == HEX_LENGTHS[Algorithm.SHA256]
        return sha256(digits) if digits is not None and whole else self.find(name).digest

    # -- removing ---------------------------------------------------------------------------------------------------

    def evict(self, name: str, *, dry_run: bool = False) -> Evicted:
        """Remove a snapshot and what only it needs. A URI that shares its snapshot with other URIs, or with what callers brought under it
        from elsewhere, or whose snapshot was taken out of service: only its ref goes.

        Raises:
            InUse: a lease or pin holds it.
            NotCached: it is not here.
        """
        uri = None if digits_of(name) is not None else str(parse_uri(name)[0])
        try:
            info = self.find(name)
        except NotCached:
            dangling = [] if uri is None else [ref for refs in self._refs_of(name) for ref in refs]
            if not dangling:
                raise
            return self._forget([ref.head for ref in dangling], dry_run)
        own = set() if uri is None else {ref.key for refs in self._refs_of(name) for ref in refs}
        refs = [ref for ref in info.refs if ref.key in own]
        if refs and len(refs) < len(info.refs):
            return self._forget(refs, dry_run)
        return self._store.evict(info.digest, dry_run=dry_run)

    def _forget(self, refs: Sequence[RefHead], dry_run: bool) -> Evicted:
        if not dry_run:
            for ref in refs:
                self._store.forget(ref.key)
        return Evicted(refs[0].manifest, tuple(ref.key.uri for ref in refs), 0)

    def collect(self, *, need_bytes: int = 0, dry_run: bool = False) -> CollectReport:
        """Remove what nobody needs, and make room for `need_bytes` by evicting the least recently used."""
        return self._store.collect(need_bytes=need_bytes, dry_run=dry_run)


def _with_holders(error: NoSpace, leases: Sequence[Lease]) -> NoSpace:
    """The same, with who holds what can't be freed."""
    holders = sorted({lease.holder for lease in leases})
    if not holders:
        return error
    more = f" and {len(holders) - NAMED} more" if len(holders) > NAMED else ""
    return NoSpace(
        f"{error.message}, by {', '.join(f'`{holder}`' for holder in holders[:NAMED])}{more}",
        needed_bytes=error.needed_bytes,
        available_bytes=error.available_bytes,
        evictable_bytes=error.evictable_bytes,
        held_bytes=error.held_bytes,
        address=error.address,
        hint=error.hint,
    )
