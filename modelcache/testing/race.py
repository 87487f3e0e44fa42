"""Callers who want models against others who remove them: rounds of one party, in a thread or (`python -m …`) in a process.

Everybody uses the same origin, of small models that share files, and the same store.
"""

from __future__ import annotations

import json
import random
import select
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from modelcache.abc.snapshot import Snapshot
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.errors import InUse, NotCached
from modelcache.testing.crash import Board
from modelcache.testing.crash_bench import LATER_S, Bench, Files, small_chunks_everywhere, stating_sha256
from modelcache.testing.store_filling import content
from modelcache.testing.store_fixtures import NO_LIMITS

TRIES = 1000
"""Of one who wants to hold a model that is evicted each time before it can be held."""


def overlapping_models() -> dict[str, Files]:
    """Each has a file of its own, one that all have, one that its neighbour has, and twice the same."""
    common = content(9000, seed=100)
    pairs = [content(5000, seed=200 + number) for number in range(2)]
    return {
        f"m{number}": {
            "own.safetensors": content(6000 + number, seed=number),
            "common.bin": common,
            "twin/common.bin": common,
            "deep/er/pair.bin": pairs[number // 2],
            "empty": b"",
        }
        for number in range(4)
    }


def arena_at(directory: Path) -> Bench:
    """The bench of a race, its origin filled."""
    arena = Bench(directory, Board(), models=overlapping_models())
    for name in arena.models:
        arena.offer(name)
    return arena


class Party:
    """One who takes part. `counts` says what came of the rounds; what may not come raises."""

    def __init__(self, arena: Bench, seed: int) -> None:
        self._arena = arena
        self._models = arena.models
        self._random = random.Random(seed)
        self._store = arena.store()
        self._late = arena.store(later_s=LATER_S)
        self._cache = ModelCache(arena.root, config=Config.load({"HOME": "/nonexistent"}, root=arena.root, limits=NO_LIMITS))
        self.counts: Counter[str] = Counter()

    def play(self, role: str, goes_on: Callable[[int], bool]) -> None:
        """Rounds of a role while `goes_on(rounds done)`."""
        done = 0
        act = {"open": self._open, "hold": self._hold, "pin": self._pin, "evict": self._evict, "collect": self._collect}[role]
        try:
            while goes_on(done):
                act(self._random.choice(sorted(self._models)))
                done += 1
        finally:
            self._cache.close()
        self.counts["rounds"] += done

    # -- those who want models --------------------------------------------------------------------------------------

    def _open(self, name: str) -> None:
        """`ModelCache.open`: nobody's digests are known before the fetch, once the ref is gone."""
        for _ in range(TRIES):
            try:
                with self._cache.open(str(self._arena.uri(name))) as snapshot:
                    self._read(snapshot, name)
                    return
            except NotCached:
                self.counts["evicted before it was held"] += 1
        raise AssertionError(f"`{name}` could not be held")

    def _hold(self, name: str) -> None:
        """An origin that states every digest: what is here is linked while planning."""
        for _ in range(TRIES):
            snapshot = self._arena.ensure(name, state=stating_sha256)
            try:
                with self._store.hold(snapshot.digest, holder="racer") as held:
                    self._read(held, name)
                    return
            except NotCached:
                self.counts["evicted before it was held"] += 1
        raise AssertionError(f"`{name}` could not be held")

    def _pin(self, name: str) -> None:
        for _ in range(TRIES):
            snapshot = self._arena.ensure(name, state=stating_sha256)
            holder = f"racer {self._random.random()}"
            try:
                self._store.pin(snapshot.digest, holder=holder)
            except NotCached:
                self.counts["evicted before it was held"] += 1
                continue
            self._read(snapshot, name)
            assert self._store.unpin(snapshot.digest, holder=holder) == 1
            return
        raise AssertionError(f"`{name}` could not be pinned")

    def _read(self, snapshot: Snapshot, name: str) -> None:
        """Every byte, twice: what is held neither changes nor goes."""
        files = self._models[name]
        for _ in range(2):
            found = {str(path.relative_to(snapshot.path)) for path in snapshot.path.rglob("*") if path.is_file()}
            assert found == files.keys(), f"a held snapshot shows {sorted(found)}"
            for path, data in files.items():
                assert (snapshot.path / path).read_bytes() == data, f"`{path}` of a held snapshot has other bytes"
        self.counts["held"] += 1

    # -- those who remove them --------------------------------------------------------------------------------------

    def _evict(self, name: str) -> None:
        try:
            self._store.evict(self._arena.digest(self._store, name))
            self.counts["evicted"] += 1
        except InUse:
            self.counts["in use"] += 1
        except NotCached:
            self.counts["not there"] += 1

    def _collect(self, name: str) -> None:
        """Everything that can be taken away, without grace: ended ingests, unnamed blobs, dangling refs, unheld snapshots."""
        need_bytes = self._random.choice([0, 1, 20_000]) and self._store.usage().available_bytes + self._random.randrange(60_000)
        with suppress(NotCached):
            report = self._late.collect(need_bytes=need_bytes)
            self.counts["evicted"] += len(report.evicted)


def main() -> None:
    """Arguments: directory, role, rounds (0: until stdin ends), seed. Prints the counts."""
    directory, role, rounds, seed = sys.argv[1:]
    with small_chunks_everywhere():
        party = Party(arena_at(Path(directory)), int(seed))
        party.play(role, lambda done: done < int(rounds) if int(rounds) else not select.select([sys.stdin], [], [], 0)[0])
    print(json.dumps(party.counts))  # noqa: T201 - read by who started this process


if __name__ == "__main__":
    main()
