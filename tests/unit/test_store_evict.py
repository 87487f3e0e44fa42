"""The choice of victims, against a simulation of removing them one by one."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from modelcache.digest import sha256
from modelcache.store.blobs import BlobFact
from modelcache.store.evict import Candidate, choose_victims, freed_bytes, own_bytes

BLOBS = st.sampled_from([f"{number:064x}" for number in range(6)])


@st.composite
def stores(draw: st.DrawFn) -> tuple[list[Candidate], dict[str, BlobFact]]:
    trees = draw(st.lists(st.dictionaries(BLOBS, st.integers(1, 3), max_size=4), max_size=6))
    times = draw(st.lists(st.integers(0, 3), min_size=len(trees), max_size=len(trees)))
    held = draw(st.lists(st.booleans(), min_size=len(trees), max_size=len(trees)))
    snapshots = [Candidate(sha256(f"{number:064x}"), float(times[number]), tree, held[number]) for number, tree in enumerate(trees)]
    others = draw(st.dictionaries(BLOBS, st.integers(0, 1)))  # Names in ingests, or outside of the store.
    names = Counter(others)
    for tree in trees:
        names.update(tree)
    sizes = draw(st.lists(st.integers(1, 100), min_size=6, max_size=6))
    facts = {digits: BlobFact(sizes[int(digits, 16)], sizes[int(digits, 16)] * 2, count) for digits, count in names.items()}
    return snapshots, facts


def removed(digests: list[str], snapshots: list[Candidate], blobs: dict[str, BlobFact]) -> list[int]:
    """Blocks freed by removing these snapshots, one after another."""
    left = {digits: fact.names for digits, fact in blobs.items()}
    freed = []
    for digest in digests:
        (snapshot,) = (item for item in snapshots if item.digest.hex == digest)
        before = sum(blobs[digits].allocated_bytes for digits, count in left.items() if count > 0)
        for digits, count in snapshot.links.items():
            left[digits] -= count
        freed.append(before - sum(blobs[digits].allocated_bytes for digits, count in left.items() if count > 0))
    return freed


@given(stores(), st.integers(0, 400))
def test_victims_free_what_they_say_and_no_more_are_taken_than_needed(
    store: tuple[list[Candidate], dict[str, BlobFact]], need_bytes: int
) -> None:
    snapshots, blobs = store
    victims = choose_victims(snapshots, blobs, need_bytes)
    by_age = sorted((item for item in snapshots if not item.held), key=lambda item: (item.last_used_at_s, item.digest.hex))
    order = [item.digest for item in by_age]
    chosen = [victim.digest for victim in victims]

    assert [digest for digest in order if digest in chosen] == chosen
    assert [victim.freed_bytes for victim in victims] == removed([digest.hex for digest in chosen], snapshots, blobs)
    total = sum(victim.freed_bytes for victim in victims)
    everything = sum(removed([digest.hex for digest in order], snapshots, blobs))
    assert freed_bytes(snapshots, blobs) == everything
    assert total >= min(need_bytes, everything)
    if victims and need_bytes > 0:
        assert total - victims[-1].freed_bytes < need_bytes
    if need_bytes == 0:
        assert victims == []


@given(stores())
def test_what_one_alone_would_free(store: tuple[list[Candidate], dict[str, BlobFact]]) -> None:
    snapshots, blobs = store
    for snapshot in snapshots:
        assert [own_bytes(snapshot.links, blobs) * 2] == removed([snapshot.digest.hex], snapshots, blobs)


def test_what_frees_nothing_is_left_alone() -> None:
    base, own = "0" * 64, "1" * 64
    old = Candidate(sha256("a" * 64), 1.0, {base: 1}, held=False)
    new = Candidate(sha256("b" * 64), 2.0, {base: 1, own: 1}, held=False)
    held = Candidate(sha256("c" * 64), 0.0, {base: 1}, held=True)
    facts = {base: BlobFact(100, 100, 3), own: BlobFact(7, 7, 1)}
    assert [victim.digest for victim in choose_victims([old, new, held], facts, 1000)] == [new.digest]
