"""Which snapshots to remove: a pure choice, so that a dry run and the real one are the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from modelcache.digest import Digest
from modelcache.store.blobs import BlobFact


@dataclass(frozen=True, slots=True)
class Candidate:
    """A snapshot as eviction sees it.

    Attributes:
        number: what `Queue.count` calls it.
        held: by a lease, a pin or a process; never chosen.
    """

    number: int
    digest: Digest
    last_used_at_s: float
    held: bool


@dataclass(frozen=True, slots=True)
class Victim:
    """A chosen snapshot and the blocks, in bytes, that its removal frees once those before it in the list are gone."""

    digest: Digest
    freed_bytes: int


class Queue:
    """The snapshots that nobody holds, least recently used first, and what goes with each of them when all before it are gone.

    It is told of the contents one by one, in any order, and keeps two numbers per snapshot and nothing per content.
    """

    def __init__(self, snapshots: Iterable[Candidate]) -> None:
        unheld = sorted((item for item in snapshots if not item.held), key=lambda item: (item.last_used_at_s, item.digest.hex))
        self._digests = [item.digest for item in unheld]
        self._turns = {item.number: turn for turn, item in enumerate(unheld)}
        self._freed_bytes = [0] * len(unheld)
        self._helps_at = [len(unheld)] * len(unheld)
        """The first turn at which a content goes that the snapshot of this turn shows."""

    def count(self, fact: BlobFact, shown: Iterable[tuple[int, int]]) -> None:
        """A content goes with the last of its names: what a held snapshot, an ingest or a file outside of the store also names stays.

        Args:
            shown: the numbers of the snapshots that show it, and how often each does.
        """
        turns = sorted([(self._turns[number], count) for number, count in shown if number in self._turns])
        left = fact.names
        for turn, count in turns:
            left -= count
            if left == 0:
                self._freed_bytes[turn] += fact.allocated_bytes
                for other, _ in turns:
                    self._helps_at[other] = min(self._helps_at[other], turn)

    @property
    def evictable_bytes(self) -> int:
        """Blocks, in bytes, that the removal of all unheld snapshots would free."""
        return sum(self._freed_bytes)

    def victims(self, need_bytes: int) -> list[Victim]:
        """The least recently used snapshots whose removal frees at least `need_bytes`; all that free anything if that is not enough.

        A snapshot that frees nothing even together with the other victims is left alone.
        """
        end = total = 0
        while end < len(self._digests) and total < need_bytes:
            total += self._freed_bytes[end]
            end += 1
        return [Victim(self._digests[turn], self._freed_bytes[turn]) for turn in range(end) if self._helps_at[turn] < end]
