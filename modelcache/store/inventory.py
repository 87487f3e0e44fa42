"""Everything that a store holds, looked at once: what lists, figures and eviction are computed from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from modelcache.abc.snapshot import RefHead
from modelcache.abc.store import Lease, LeaseKind, SnapshotInfo
from modelcache.digest import Digest, sha256
from modelcache.store.blobs import BlobFact
from modelcache.store.evict import Candidate, Queue
from modelcache.store.layout import is_hex
from modelcache.store.links import Links
from modelcache.store.parts import Parts
from modelcache.store.snapshots import Summary

Content = tuple[BlobFact, Sequence[tuple[int, int]]]
"""What the disk says of a blob, and the snapshots (by their place in the inventory) that show it, how often each."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A snapshot without what it shows."""

    digest: Digest
    size_bytes: int
    file_count: int
    last_used_at_s: float


@dataclass(slots=True)
class Share:
    """What one snapshot shows of the store's content: in all, alone, and the blocks of what it shows alone."""

    shown_bytes: int = 0
    own_bytes: int = 0
    freed_bytes: int = 0


@dataclass(slots=True)
class Totals:
    """`Usage` of what is published, named as there."""

    content_bytes: int = 0
    own_bytes: int = 0
    shared_bytes: int = 0
    blobs_bytes: int = 0
    leased_bytes: int = 0
    pinned_bytes: int = 0
    evictable_bytes: int = 0


@dataclass(frozen=True)
class Inventory:
    """The published snapshots, and a look at what they show. Read without the lock: a look, not a decision.

    Of a content nothing is kept but the packed links to it (`store/links.py`), and these until it is looked at: every figure is a sum over
    the blobs, taken as they go by. They do so once: an inventory answers one question.
    """

    snapshots: Sequence[Listed]
    contents: Iterator[Content]

    @classmethod
    def read(cls, parts: Parts, doomed: Mapping[int, int] | None = None) -> Inventory:
        """Args: doomed: names (inode → count) that count as gone already."""
        links: defaultdict[str, Links] = defaultdict(Links)
        listed = []
        for number, digest in enumerate(parts.snapshots.every()):
            summary = parts.snapshots.summary(digest)
            links[summary.compartment].add(number, summary.links)
            listed.append(_listed(summary, parts))

        def contents() -> Iterator[Content]:
            for compartment in parts.compartments():
                for directory, facts in compartment.blobs.facts(doomed):
                    shown = links[compartment.name].take(directory)
                    for digits, fact in facts.items():
                        yield fact, shown.get(Links.key(digits), ())

        return cls(listed, contents())

    @classmethod
    def of(cls, parts: Parts, digest: Digest) -> Inventory:
        """Of one snapshot and its blobs alone."""
        summary = parts.snapshots.summary(digest)
        blobs = parts.compartment(summary.compartment).blobs

        def contents() -> Iterator[Content]:
            for digits, count in summary.links.items():
                if is_hex(digits, 64) and (fact := blobs.fact(sha256(digits))) is not None:
                    yield fact, ((0, count),)

        return cls([_listed(summary, parts)], contents())

    @property
    def digests(self) -> set[Digest]:
        return {listed.digest for listed in self.snapshots}

    def queue(self, held: Iterable[Digest]) -> tuple[Queue, int]:
        """What may leave, and the blocks of all that held snapshots show, each content once."""
        queue, keeping, held_bytes = self._queue(held), self._numbers(held), 0
        for fact, shown in self.contents:
            queue.count(fact, shown)
            held_bytes += fact.allocated_bytes if _shows(keeping, shown) else 0
        return queue, held_bytes

    def totals(self, *, leased: Iterable[Digest], pinned: Iterable[Digest], held: Iterable[Digest]) -> Totals:
        """Args: held: what eviction must leave, which is more than what is leased if the leases can't be read."""
        totals, queue = Totals(), self._queue(held)
        leasing, pinning = self._numbers(leased), self._numbers(pinned)
        for fact, shown in self.contents:
            totals.content_bytes += fact.size_bytes
            totals.blobs_bytes += fact.allocated_bytes
            for _, count in shown:
                if count == fact.names:
                    totals.own_bytes += fact.size_bytes
            if len(shown) > 1:
                totals.shared_bytes += fact.size_bytes
            if _shows(leasing, shown):
                totals.leased_bytes += fact.allocated_bytes
            if _shows(pinning, shown):
                totals.pinned_bytes += fact.allocated_bytes
            queue.count(fact, shown)
        totals.evictable_bytes = queue.evictable_bytes
        return totals

    def infos(self, parts: Parts, refs: Callable[[], Iterable[RefHead]], leases: Iterable[Lease]) -> list[SnapshotInfo]:
        """What `ls` shows, most recently used first. `refs` is asked last, when the links are gone from memory."""
        shares = self._shares()
        of_refs: defaultdict[Digest, list[RefHead]] = defaultdict(list)
        for ref in refs():
            of_refs[ref.manifest].append(ref)
        of_leases: defaultdict[Digest, list[Lease]] = defaultdict(list)
        for lease in leases:
            of_leases[lease.manifest].append(lease)
        found = [
            SnapshotInfo(
                digest=listed.digest,
                path=parts.root.layout.snapshot(listed.digest),
                size_bytes=listed.size_bytes,
                own_bytes=share.own_bytes,
                shared_bytes=share.shown_bytes - share.own_bytes,
                freed_bytes=share.freed_bytes,
                file_count=listed.file_count,
                refs=tuple(of_refs[listed.digest]),
                leases=tuple(of_leases[listed.digest]),
                last_used_at_s=listed.last_used_at_s,
            )
            for listed, share in zip(self.snapshots, shares, strict=True)
        ]
        return sorted(found, key=lambda info: (-info.last_used_at_s, info.digest.hex))

    def _shares(self) -> list[Share]:
        shares = [Share() for _ in self.snapshots]
        for fact, shown in self.contents:
            for number, count in shown:
                share = shares[number]
                share.shown_bytes += fact.size_bytes
                if count == fact.names:
                    share.own_bytes += fact.size_bytes
                    share.freed_bytes += fact.allocated_bytes
        return shares

    def _queue(self, held: Iterable[Digest]) -> Queue:
        kept = frozenset(held)
        return Queue(Candidate(number, item.digest, item.last_used_at_s, item.digest in kept) for number, item in enumerate(self.snapshots))

    def _numbers(self, digests: Iterable[Digest]) -> set[int]:
        wanted = frozenset(digests)
        return {number for number, listed in enumerate(self.snapshots) if listed.digest in wanted}


def _listed(summary: Summary, parts: Parts) -> Listed:
    return Listed(summary.digest, summary.size_bytes, summary.file_count, parts.snapshots.last_used_at_s(summary.digest))


def _shows(numbers: set[int], shown: Sequence[tuple[int, int]]) -> bool:
    return bool(numbers) and any(number in numbers for number, _ in shown)


def pinned(leases: Iterable[Lease]) -> set[Digest]:
    return {lease.manifest for lease in leases if lease.kind is LeaseKind.PIN}
