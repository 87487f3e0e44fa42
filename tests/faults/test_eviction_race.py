"""Evictions against concurrent ensures, holds and pins: a held snapshot never loses a byte, and no ensure fails."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelcache.testing.audit import Moment, audit
from modelcache.testing.crash_bench import small_chunks_everywhere
from modelcache.testing.race import Party, arena_at
from tests.faults.chance import quick_directory, seed_of, soak_rounds

ROUNDS = 10
WANTING = ("open", "hold", "pin")
REMOVING = ("evict", "collect")
DEADLINE_S = 3600

Race = Callable[[Path, int, int], Counter[str]]


@contextmanager
def quick_switches() -> Iterator[None]:
    """Who removes never rests and keeps the interpreter for its 5 ms each time: the others waited for that at every system call."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)


def of_threads(directory: Path, rounds: int, seed: int) -> Counter[str]:
    """Everybody in this process, each with a store of their own over the directory."""
    arena = arena_at(directory)
    over = threading.Event()
    parties = [Party(arena, seed + number) for number in range(len(WANTING) + len(REMOVING))]
    with small_chunks_everywhere(), quick_switches(), ThreadPoolExecutor(len(parties)) as pool:
        wanting = [
            pool.submit(party.play, role, lambda done: done < rounds) for party, role in zip(parties[: len(WANTING)], WANTING, strict=True)
        ]
        removing = [
            pool.submit(party.play, role, lambda done: not over.is_set())
            for party, role in zip(parties[len(WANTING) :], REMOVING, strict=True)
        ]
        try:
            for task in wanting:
                task.result()
        finally:
            over.set()
        for task in removing:
            task.result()
    return sum((party.counts for party in parties), Counter())


def of_processes(directory: Path, rounds: int, seed: int) -> Counter[str]:
    arena_at(directory)

    def start(number: int, role: str, rounds: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "modelcache.testing.race", str(directory), role, str(rounds), str(seed + number)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    wanting = [start(number, role, rounds) for number, role in enumerate(WANTING)]
    removing = [start(number, role, 0) for number, role in enumerate(REMOVING, start=len(WANTING))]
    counts: Counter[str] = Counter()
    try:
        for process in (*wanting, *removing):
            shown, errors = process.communicate(timeout=DEADLINE_S)  # Ends the stdin of those who remove until then.
            assert process.returncode == 0, errors
            counts.update(json.loads(shown))
    finally:
        for process in (*wanting, *removing):
            process.kill()
            process.communicate()
    return counts


def run(race: Race, rounds: int, seed: int) -> None:
    with quick_directory() as directory:
        counts = race(directory, rounds, seed)
        print(dict(counts))
        assert counts["held"] == len(WANTING) * rounds
        assert counts["evicted"] > rounds / 10, "no race: hardly anything was evicted"
        arena = arena_at(directory)
        with small_chunks_everywhere():
            arena.settle()
            assert audit(arena.root, Moment.SETTLED) == []
            for name, files in arena.shown().items():
                assert files == arena.models[name]


@pytest.mark.timeout(DEADLINE_S)
@pytest.mark.parametrize("race", [of_threads, of_processes])
def test_a_held_snapshot_never_loses_a_byte(race: Race, pytestconfig: pytest.Config) -> None:
    run(race, ROUNDS, seed_of(pytestconfig))


@pytest.mark.soak
@pytest.mark.timeout(DEADLINE_S)
@pytest.mark.parametrize("race", [of_threads, of_processes])
def test_a_held_snapshot_never_loses_a_byte_in_thousands_of_rounds(race: Race, pytestconfig: pytest.Config) -> None:
    run(race, soak_rounds(3000), seed_of(pytestconfig))
