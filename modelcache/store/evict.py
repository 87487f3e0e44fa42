"""Which snapshots to remove: a pure choice, so that a dry run and the real one are the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from modelcache.digest import Digest
from modelcache.store.blobs import BlobFact


@dataclass(frozen=True, slots=True)
class Candidate:
    """A snapshot as eviction sees it.

    Attributes:
        links: hex digits of a blob → how many files of the tree are links to it.
        held: by a lease, a pin or a process; never chosen.
    """

    digest: Digest
    last_used_at_s: float
    links: Mapping[str, int]
    held: bool


@dataclass(frozen=True, slots=True)
class Victim:
    """A chosen snapshot and the blocks, in bytes, that its removal frees once those before it in the list are gone."""

    digest: Digest
    freed_bytes: int


def choose_victims(snapshots: Iterable[Candidate], blobs: Mapping[str, BlobFact], need_bytes: int) -> list[Victim]:
    """The least recently used snapshots whose removal frees at least `need_bytes`; all that free anything if that is not enough.

    A blob counts only with the last of its names: what a held snapshot, an ingest or a file outside of the store also names
    frees nothing, and a snapshot that frees nothing even together with the other victims is left alone.
    """
    if need_bytes <= 0:
        return []
    left = {digits: fact.names for digits, fact in blobs.items()}
    chosen: list[tuple[Candidate, int]] = []
    freed: set[str] = set()
    total = 0
    for snapshot in sorted((item for item in snapshots if not item.held), key=lambda item: (item.last_used_at_s, item.digest.hex)):
        if total >= need_bytes:
            break
        bytes_here = 0
        for digits, count in snapshot.links.items():
            if digits in left:
                left[digits] -= count
                if left[digits] == 0:
                    bytes_here += blobs[digits].allocated_bytes
                    freed.add(digits)
        chosen.append((snapshot, bytes_here))
        total += bytes_here
    return [Victim(item.digest, bytes_here) for item, bytes_here in chosen if bytes_here or not freed.isdisjoint(item.links)]


def freed_bytes(snapshots: Sequence[Candidate], blobs: Mapping[str, BlobFact]) -> int:
    """Blocks, in bytes, that the removal of all unheld snapshots would free."""
    total = sum(fact.allocated_bytes for fact in blobs.values()) + 1
    return sum(victim.freed_bytes for victim in choose_victims(snapshots, blobs, total))


def own(links: Mapping[str, int], blobs: Mapping[str, BlobFact]) -> list[BlobFact]:
    """The blobs that only the snapshot of these links names."""
    return [fact for digits, count in links.items() if (fact := blobs.get(digits)) is not None and fact.names == count]


def own_bytes(links: Mapping[str, int], blobs: Mapping[str, BlobFact]) -> int:
    """Bytes of content that only the snapshot of these links names."""
    return sum(fact.size_bytes for fact in own(links, blobs))
