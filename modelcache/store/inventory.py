"""Everything that a store holds, read once: what lists, figures and eviction are computed from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from modelcache.abc.snapshot import RefHead
from modelcache.abc.store import Lease, LeaseKind, SnapshotInfo
from modelcache.digest import Digest, sha256
from modelcache.store.blobs import BlobFact
from modelcache.store.evict import Candidate, freed_bytes, own, own_bytes
from modelcache.store.parts import Parts
from modelcache.store.snapshots import Summary


@dataclass(frozen=True)
class Inventory:
    """Snapshots with what they name, and what every blob is named by. Read without the lock: a look, not a decision."""

    summaries: Mapping[Digest, Summary]
    last_used_at_s: Mapping[Digest, float]
    blobs: Mapping[str, BlobFact]

    @classmethod
    def read(cls, parts: Parts, doomed: Mapping[int, int] | None = None) -> Inventory:
        """Args: doomed: names (inode → count) that count as gone already."""
        digests = parts.snapshots.every()
        return cls(
            {digest: parts.snapshots.summary(digest) for digest in digests},
            {digest: parts.snapshots.last_used_at_s(digest) for digest in digests},
            parts.blobs.facts(doomed),
        )

    @classmethod
    def of(cls, parts: Parts, digest: Digest) -> Inventory:
        """Of one snapshot and its blobs alone."""
        summary = parts.snapshots.summary(digest)
        last_used_at_s = parts.snapshots.last_used_at_s(digest)
        return cls({digest: summary}, {digest: last_used_at_s}, parts.blobs.facts(only=map(sha256, summary.links)))

    def candidates(self, held: Iterable[Digest]) -> list[Candidate]:
        kept = frozenset(held)
        return [Candidate(digest, self.last_used_at_s[digest], summary.links, digest in kept) for digest, summary in self.summaries.items()]

    def content_bytes(self, digests: Iterable[Digest]) -> int:
        """Blocks of all that these snapshots show, each content once."""
        named = {digits for digest in digests if digest in self.summaries for digits in self.summaries[digest].names}
        return sum(self.blobs[digits].allocated_bytes for digits in named if digits in self.blobs)

    def evictable_bytes(self, held: Iterable[Digest]) -> int:
        return freed_bytes(self.candidates(held), self.blobs)

    def shared_bytes(self) -> int:
        """Content that several snapshots show, each once."""
        showing = Counter(digits for summary in self.summaries.values() for digits in summary.links)
        return sum(self.blobs[digits].size_bytes for digits, count in showing.items() if count > 1 and digits in self.blobs)

    def own_bytes(self) -> int:
        """Content that one snapshot alone needs."""
        return sum(own_bytes(summary.links, self.blobs) for summary in self.summaries.values())

    def infos(self, parts: Parts, refs: Iterable[RefHead], leases: Iterable[Lease]) -> list[SnapshotInfo]:
        """What `ls` shows, most recently used first."""
        of_refs: defaultdict[Digest, list[RefHead]] = defaultdict(list)
        for ref in refs:
            of_refs[ref.manifest].append(ref)
        of_leases: defaultdict[Digest, list[Lease]] = defaultdict(list)
        for lease in leases:
            of_leases[lease.manifest].append(lease)
        found = [self._info(parts, summary, tuple(of_refs[digest]), tuple(of_leases[digest])) for digest, summary in self.summaries.items()]
        return sorted(found, key=lambda info: (-info.last_used_at_s, info.digest.hex))

    def _info(self, parts: Parts, summary: Summary, refs: tuple[RefHead, ...], leases: tuple[Lease, ...]) -> SnapshotInfo:
        shown_bytes = sum(self.blobs[digits].size_bytes for digits in summary.links if digits in self.blobs)
        alone = own(summary.links, self.blobs)
        own_bytes = sum(fact.size_bytes for fact in alone)
        return SnapshotInfo(
            digest=summary.digest,
            path=parts.root.layout.snapshot(summary.digest),
            size_bytes=summary.size_bytes,
            own_bytes=own_bytes,
            shared_bytes=shown_bytes - own_bytes,
            freed_bytes=sum(fact.allocated_bytes for fact in alone),
            file_count=summary.file_count,
            refs=refs,
            leases=leases,
            last_used_at_s=self.last_used_at_s[summary.digest],
        )


def pinned(leases: Iterable[Lease]) -> set[Digest]:
    return {lease.manifest for lease in leases if lease.kind is LeaseKind.PIN}
