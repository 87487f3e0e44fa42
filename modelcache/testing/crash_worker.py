"""`python -m modelcache.testing.crash_worker`: kills a script at every change to the disk, goes on with it, and audits.

A process of its own, with one thread, so that it may fork: a round takes milliseconds. Prints a JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from modelcache.testing.audit import Moment, audit
from modelcache.testing.crash import Board, doomed, in_child
from modelcache.testing.crash_bench import Bench, Files, chunk_bytes, small_chunks_everywhere
from modelcache.testing.crash_scenarios import Scenario, scenarios

NEVER = 1 << 40
"""A change that no script comes to."""


@dataclass(frozen=True)
class Point:
    """Where a round is killed.

    Attributes:
        at: the number of the change, from 1.
        torn: in the middle of it instead of ahead of it.
        retried: who was killed comes back at once and does it again; else days pass first, and then somebody does it all.
    """

    at: int
    torn: bool
    retried: bool


class Rounds:
    """The rounds of one script.

    Attributes:
        changes: to the disk, that the undisturbed steps make.
        writes: numbers of those that write bytes.
        fetched_bytes: by the undisturbed steps.
    """

    def __init__(self, directory: Path, scenario: Scenario) -> None:
        self.changes = self.fetched_bytes = 0
        self.writes: list[int] = []
        self._directory = directory
        self._scenario = scenario
        self._board = Board()
        self._bench = Bench(directory, self._board, scenario.limits)
        self._problems: list[str] = []

    def undisturbed(self) -> list[str]:
        """Run the script to its end, to know what it does; what went wrong."""
        self._begin(Point(NEVER, torn=False, retried=True))
        self.changes, self.fetched_bytes, self.writes = self._board.changes, self._board.fetched_bytes, self._board.writes
        self._ends_well("in the end")
        return [f"undisturbed: {problem}" for problem in self._problems]

    def round(self, point: Point) -> list[str]:
        """What went wrong after a crash at this point. One chunk more may be fetched than by an undisturbed run."""
        self._problems = []
        self._begin(point)
        first = self._board.step
        self._audit("after the crash", Moment.CRASHED)
        if point.retried:
            self._child("doing it again", lambda: self._do(first))
            most = self.fetched_bytes + chunk_bytes() + self._scenario.wasted_bytes
            if self._board.fetched_bytes > most:
                self._problems.append(f"fetched {self._board.fetched_bytes} bytes in all, {most} at most would have done")
        else:
            self._child("days later", self._bench.settle)
            self._audit("days later", Moment.SETTLED)
            self._child("doing it all", lambda: self._do(0))
        self._ends_well("in the end")
        return [f"{point}, step {first}: {problem}" for problem in self._problems]

    def _begin(self, point: Point) -> None:
        if self._directory.exists():
            shutil.rmtree(self._directory)
        self._directory.mkdir()
        self._child("preparing", self._prepare)
        self._board.clear()
        self._child("doing it", lambda: self._do(0, point), killed=point.at != NEVER)

    def _prepare(self) -> None:
        for step in self._scenario.prepare:
            step(self._bench)

    def _do(self, first: int, point: Point | None = None) -> None:
        with doomed(self._board, point.at, torn=point.torn) if point is not None else nullcontext():
            for number, step in enumerate(self._scenario.steps[first:], start=first):
                self._board.step = number
                step(self._bench)

    def _ends_well(self, when: str) -> None:
        self._child(f"looking {when}", self._compare)
        self._child("settling", self._bench.settle)
        self._audit(when, Moment.SETTLED, repaired=True)
        self._child(f"looking again {when}", self._compare)

    def _compare(self) -> None:
        wanted: dict[str, Files] = {name: self._bench.models[model] for name, model in self._scenario.shown.items()}
        found = self._bench.shown()
        assert found.keys() == wanted.keys(), f"shown are {sorted(found)}, not {sorted(wanted)}"
        for name, files in wanted.items():
            assert found[name] == files, f"`{name}` shows other files or bytes than the origin has"

    def _child(self, what: str, work: Callable[[], None], *, killed: bool = False) -> None:
        code = in_child(work)
        if code != (-signal.SIGKILL if killed else 0):
            self._problems.append(f"{what}: ended with {code}")

    def _audit(self, when: str, moment: Moment, *, repaired: bool = False) -> None:
        damaged = self._scenario.damaged
        found = audit(self._bench.root, moment, damaged=() if repaired else damaged, quarantined=damaged)
        self._problems += [f"{when}: {line}" for line in found]

    def points(self, seed: int, rounds: int | None) -> Sequence[Point]:
        """Every point, or a sample of so many of them."""
        places = [(at, False) for at in range(1, self.changes + 1)] + [(at, True) for at in self.writes]
        every = [Point(at, torn, retried) for at, torn in places for retried in (False, True)]
        return every if rounds is None or rounds >= len(every) else random.Random(seed).sample(every, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="emptied at each round")
    parser.add_argument("scenario")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, help="a sample of so many (default: all)")
    parser.add_argument("--chunks", choices=("small", "real"), default="small")
    given = parser.parse_args()
    with small_chunks_everywhere() if given.chunks == "small" else nullcontext():
        rounds = Rounds(given.directory, scenarios()[given.scenario])
        problems = rounds.undisturbed()
        points = [] if problems else rounds.points(given.seed, given.rounds)
        for point in points:
            problems += rounds.round(point)
    print(json.dumps({"changes": rounds.changes, "rounds": len(points), "problems": problems}))  # noqa: T201 - read by who started this process


if __name__ == "__main__":
    main()
