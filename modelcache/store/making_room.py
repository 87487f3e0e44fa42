"""Making room: what is nobody's goes first, then the least recently used snapshots, and nothing at all if that is not enough."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelcache.abc.store import CollectReport, Evicted
from modelcache.digest import Digest, sha256
from modelcache.errors import DamagedRecord, NoSpace, StoreReadOnly
from modelcache.store.blobs import BLOCK_BYTES, total_names
from modelcache.store.budget import Budget, Room, regular_files, unshared_bytes
from modelcache.store.evict import Victim
from modelcache.store.inventory import Inventory
from modelcache.store.parts import Parts
from modelcache.store.removal import GRACE_S, Removal
from modelcache.store.trash import inode_names
from modelcache.units import MIB, format_bytes

_log = logging.getLogger(__name__)
DIGEST_BYTES = 32
LEAST_TOLD_BYTES = MIB
"""More than the records of the ingest that is refused."""
ROUNDS = 5
"""A round is spoilt by a lease taken between choice and removal, or by blocks that reflinks keep; then it is all looked at again."""


@dataclass(frozen=True, slots=True)
class Made:
    """What this process has evicted to make room for what came, since it opened the store."""

    snapshots: int = 0
    freed_bytes: int = 0


@dataclass(frozen=True)
class Garbage:
    """What is nobody's: trash, ended ingests, and the blobs that only these name.

    Attributes:
        blobs: by compartment, their digests, 32 bytes each: a crash may leave very many.
        doomed: names (inode → count) that go with it.
    """

    ingests: Sequence[Path]
    blobs: Mapping[str, bytearray]
    doomed: Counter[int]
    freed_bytes: int

    @property
    def blob_count(self) -> int:
        return sum(map(len, self.blobs.values())) // DIGEST_BYTES

    def digests(self, compartment: str) -> Iterator[Digest]:
        packed = self.blobs.get(compartment, b"")
        return (sha256(packed[at : at + DIGEST_BYTES].hex()) for at in range(0, len(packed), DIGEST_BYTES))


class MakingRoom:
    """Decides with the pure choice of `evict`, executes with `Removal`."""

    def __init__(self, parts: Parts, budget: Budget, removal: Removal) -> None:
        self._parts = parts
        self._budget = budget
        self._removal = removal
        self.made = Made()

    def collect(self, need_bytes: int, *, dry_run: bool) -> CollectReport:
        """`Store.collect`. A dry run computes the same and changes nothing."""
        if not dry_run:
            if not os.access(self._parts.root.address, os.W_OK):  # now: what there is nothing to remove of would be told as done
                raise StoreReadOnly("the store can't be written, so nothing can be removed", address=self._parts.root.address)
            self._removal.sweep()
        garbage = self.garbage(GRACE_S)
        if dry_run:
            victims = self._wanted(need_bytes, self._budget.room(), garbage)
            evicted = self._named(victims)
        else:
            self._remove_garbage(garbage)
            evicted = self._evict(need_bytes)
        return CollectReport(
            evicted=evicted,
            ingests_removed=len(garbage.ingests),
            blobs_removed=garbage.blob_count,
            freed_bytes=garbage.freed_bytes + sum(item.freed_bytes for item in evicted),
            dry_run=dry_run,
        )

    def make(self, need_bytes: int) -> None:
        """Have room to book `need_bytes`. Under the room lock.

        Raises:
            NoSpace: even all that may be removed would not do; no snapshot was removed, no ended ingest either.
        """
        self._parts.trash.empty()
        room = self._budget.room()
        if need_bytes <= room.available_bytes:
            return
        self._remove_garbage(self.garbage(GRACE_S))
        for _ in range(ROUNDS):
            room = self._budget.room()
            if need_bytes <= room.available_bytes:
                return
            self._make_some(need_bytes, room)
        inventory = Inventory.read(self._parts)
        queue, held_bytes = inventory.queue(self._held(inventory))
        raise self._no_space(need_bytes, self._budget.room(), queue.evictable_bytes, held_bytes)

    def garbage(self, grace_s: float) -> Garbage:
        """What `collect` would remove before it thinks of snapshots."""
        ingests = self._removal.ended(grace_s=grace_s)
        doomed = total_names([self._parts.trash.links(), *(inode_names(path) for path in ingests)])
        blobs: defaultdict[str, bytearray] = defaultdict(bytearray)
        freed_bytes = 0
        for compartment in self._parts.compartments():
            for digest, allocated_bytes in compartment.blobs.unnamed(doomed):
                blobs[compartment.name] += bytes.fromhex(digest.hex)
                freed_bytes += allocated_bytes
        places = [self._parts.root.layout.trash, *ingests]
        own = sum(found.st_blocks * BLOCK_BYTES for place in places for found in regular_files(place) if found.st_nlink == 1)
        return Garbage(ingests, blobs, doomed, own + freed_bytes)

    def _remove_garbage(self, garbage: Garbage) -> None:
        self._parts.trash.empty()
        if garbage.ingests:
            self._removal.remove_ingests(garbage.ingests)
        if sum(self._parts.compartment(name).blobs.drop_unnamed(garbage.digests(name)) for name in garbage.blobs):
            self._parts.trash.empty()

    # -- for one booking ------------------------------------------------------------------------------------------

    def _make_some(self, need_bytes: int, room: Room) -> None:
        """One round: choose under what is known now, and remove it if it is still so."""
        inventory = Inventory.read(self._parts)
        queue, held_bytes = inventory.queue(self._held(inventory))
        lacking = need_bytes - room.available_bytes
        ended = self.garbage(grace_s=0) if lacking > queue.evictable_bytes else None
        freeable = queue.evictable_bytes + (ended.freed_bytes if ended is not None else 0)
        if lacking > freeable:
            raise self._no_space(need_bytes, room, freeable, held_bytes)
        if ended is not None:
            self._remove_garbage(ended)
        victims = queue.victims(_goal(need_bytes, room, queue.evictable_bytes))
        named = self._named(victims)
        if self._removal.evict_all([victim.digest for victim in victims]):
            self._tell(named)

    def _tell(self, evicted: Sequence[Evicted]) -> None:
        """Under the room lock."""
        self.made = Made(self.made.snapshots + len(evicted), self.made.freed_bytes + sum(each.freed_bytes for each in evicted))
        for each in evicted:
            fields = {"freed_bytes": each.freed_bytes, "digest": str(each.digest)}
            model = each.uris[0] if each.uris else None
            _log.info("evicted to make room: %s", each.digest, extra={"event": "evicted", "model": model, "fields": fields})

    def _held(self, inventory: Inventory) -> set[Digest]:
        """Snapshots that must stay: all of them if the leases can't be read."""
        try:
            return {lease.manifest for lease in self._parts.leases.deciding()}
        except DamagedRecord:
            return inventory.digests

    def _no_space(self, need_bytes: int, room: Room, evictable_bytes: int, held_bytes: int) -> NoSpace:
        available = max(0, room.available_bytes)
        _, unclear = self._parts.leases.holding()
        coming = self._budget.ingest_bytes() - sum(map(unshared_bytes, self._removal.ended(grace_s=0)))
        on_way = f", {format_bytes(coming)} are on their way" if coming >= LEAST_TOLD_BYTES else ""
        why = f"; who holds what can't be told, so nothing may be removed: `{unclear.address}`" if unclear else ""
        short = format_bytes(need_bytes) == format_bytes(available + evictable_bytes)
        told = [f"{each:,} B" if short else format_bytes(each) for each in (need_bytes, available, evictable_bytes)]
        return NoSpace(
            f"{told[0]} are needed, {told[1]} are available, {told[2]} could be freed{on_way} and {format_bytes(held_bytes)} are held{why}",
            needed_bytes=need_bytes,
            available_bytes=available,
            evictable_bytes=evictable_bytes,
            held_bytes=held_bytes,
            address=self._parts.root.address,
        )

    # -- for `collect` --------------------------------------------------------------------------------------------

    def _evict(self, need_bytes: int) -> tuple[Evicted, ...]:
        for _ in range(ROUNDS):
            victims = self._wanted(need_bytes, self._budget.room(), None)
            evicted = self._named(victims)
            if not victims or self._removal.evict_all([victim.digest for victim in victims]):
                return evicted
        return ()

    def _wanted(self, need_bytes: int, room: Room, garbage: Garbage | None) -> list[Victim]:
        """Snapshots to remove so that `need_bytes` fit, or, of no need, so that the watermark is kept; `garbage` counts as gone.

        Raises:
            DamagedRecord: something should be removed, but a lease can't be read.
        """
        coming = 0 if garbage is None else garbage.freed_bytes
        after = Room(room.total_bytes, room.free_bytes + coming, room.available_bytes + coming, room.low_bytes + coming)
        if need_bytes <= after.available_bytes:
            return []
        inventory = Inventory.read(self._parts, None if garbage is None else garbage.doomed)
        held = {lease.manifest for lease in self._parts.leases.deciding()}
        queue, _ = inventory.queue(held)
        if need_bytes > 0 and need_bytes - after.available_bytes > queue.evictable_bytes:
            return []
        return queue.victims(_goal(need_bytes, after, queue.evictable_bytes))

    def _named(self, victims: Sequence[Victim]) -> tuple[Evicted, ...]:
        """With the URIs of each; the refs are looked through once, however many victims there are."""
        uris: defaultdict[Digest, list[str]] = defaultdict(list)
        for ref in self._parts.refs.every() if victims else ():
            uris[ref.manifest].append(ref.key.uri)
        return tuple(Evicted(victim.digest, tuple(uris[victim.digest]), victim.freed_bytes) for victim in victims)


def _goal(need_bytes: int, room: Room, evictable_bytes: int) -> int:
    """How much to free: down to the low watermark if that can be reached, else only what is needed.

    Chasing a low watermark that others' files keep out of reach would empty the cache for nothing.
    """
    low = need_bytes - room.low_bytes
    return low if low <= evictable_bytes else need_bytes - room.available_bytes
