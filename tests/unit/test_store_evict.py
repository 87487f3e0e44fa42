"""The choice of victims, against a simulation of removing them one by one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from modelcache.digest import sha256
from modelcache.store.blobs import BlobFact
from modelcache.store.evict import Candidate, Queue

BLOBS = st.sampled_from([f"{number:064x}" for number in range(6)])


@dataclass(frozen=True)
class Stock:
    """Snapshots, what each shows how often, and the blobs."""

    snapshots: list[Candidate]
    links: list[Mapping[str, int]]
    blobs: dict[str, BlobFact]

    def queue(self, seed: int = 0) -> Queue:
        """Told of the blobs in any order."""
        queue, digests = Queue(self.snapshots), list(self.blobs)
        random.Random(seed).shuffle(digests)
        for digits in digests:
            shown = [(number, links[digits]) for number, links in enumerate(self.links) if digits in links]
            random.Random(seed).shuffle(shown)
            queue.count(self.blobs[digits], shown)
        return queue

    def removed(self, numbers: list[int]) -> list[int]:
        """Blocks freed by removing these snapshots, one after another."""
        left = {digits: fact.names for digits, fact in self.blobs.items()}
        freed = []
        for number in numbers:
            before = sum(self.blobs[digits].allocated_bytes for digits, count in left.items() if count > 0)
            for digits, count in self.links[number].items():
                left[digits] -= count
            freed.append(before - sum(self.blobs[digits].allocated_bytes for digits, count in left.items() if count > 0))
        return freed


@st.composite
def stocks(draw: st.DrawFn) -> Stock:
    trees = draw(st.lists(st.dictionaries(BLOBS, st.integers(1, 3), max_size=4), max_size=6))
    times = draw(st.lists(st.integers(0, 3), min_size=len(trees), max_size=len(trees)))
    held = draw(st.lists(st.booleans(), min_size=len(trees), max_size=len(trees)))
    snapshots = [Candidate(number, sha256(f"{number:064x}"), float(times[number]), held[number]) for number in range(len(trees))]
    others = draw(st.dictionaries(BLOBS, st.integers(0, 1)))  # Names in ingests, or outside of the store.
    names = Counter(others)
    for tree in trees:
        names.update(tree)
    sizes = draw(st.lists(st.integers(1, 100), min_size=6, max_size=6))
    facts = {digits: BlobFact(sizes[int(digits, 16)], sizes[int(digits, 16)] * 2, count) for digits, count in names.items()}
    return Stock(snapshots, list(trees), facts)


@given(stocks(), st.integers(0, 400), st.integers(0, 3))
def test_victims_free_what_they_say_and_no_more_are_taken_than_needed(stock: Stock, need_bytes: int, seed: int) -> None:
    queue = stock.queue(seed)
    victims = queue.victims(need_bytes)
    by_age = sorted((item for item in stock.snapshots if not item.held), key=lambda item: (item.last_used_at_s, item.digest.hex))
    chosen = [victim.digest for victim in victims]
    numbers = [item.number for item in by_age if item.digest in chosen]

    assert [stock.snapshots[number].digest for number in numbers] == chosen
    assert [victim.freed_bytes for victim in victims] == stock.removed(numbers)
    total = sum(victim.freed_bytes for victim in victims)
    everything = sum(stock.removed([item.number for item in by_age]))
    assert queue.evictable_bytes == everything
    assert total >= min(need_bytes, everything)
    if victims and need_bytes > 0:
        assert total - victims[-1].freed_bytes < need_bytes
    if need_bytes == 0:
        assert victims == []


def test_what_frees_nothing_is_left_alone() -> None:
    base, own = "0" * 64, "1" * 64
    old, new, held = (
        Candidate(0, sha256("a" * 64), 1.0, held=False),
        Candidate(1, sha256("b" * 64), 2.0, held=False),
        Candidate(2, sha256("c" * 64), 0.0, held=True),
    )
    facts = {base: BlobFact(100, 100, 3), own: BlobFact(7, 7, 1)}
    stock = Stock([old, new, held], [{base: 1}, {base: 1, own: 1}, {base: 1}], facts)
    assert [victim.digest for victim in stock.queue().victims(1000)] == [new.digest]
