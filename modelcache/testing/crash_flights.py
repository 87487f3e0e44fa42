"""`python -m modelcache.testing.crash_flights`: processes that want overlapping models of one store at once, and are killed at random.

A process of one thread that forks, so a round takes a fraction of a second. What each child reads from the origin is counted
where it reads it. Prints a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import modelcache.fetch.lookout
from modelcache.abc.source import Body, Listing, Origin, RemoteFile
from modelcache.digest import Digest
from modelcache.ensure import Ensure
from modelcache.fetch.plan import Priority
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.testing.audit import Moment, audit
from modelcache.testing.crash import Board
from modelcache.testing.crash_bench import (
    Bench,
    MeteredSource,
    State,
    chunk_bytes,
    small_chunks_everywhere,
    stating_nothing,
    stating_sha256,
)
from modelcache.testing.fetching import running_engine
from modelcache.testing.store_filling import content
from modelcache.uri import StorageUri

CHILD_DEADLINE_S = 60
KILLED_AFTER_S = 0.15
PACE_S = 0.002
"""What a read takes at least, so that fetches last longer than it takes to begin one."""
STATES: Mapping[str, State] = {"sha256": stating_sha256, "version": stating_nothing}
URIS = {"sha256": ("all", "all/a", "all/b"), "version": ("all",)}
"""Where no digest is known before the fetch, the same bytes under a second URI are known only while somebody fetches them."""


def family() -> dict[str, bytes]:
    """Path below `all` → bytes: what is in `a/` and `b/` is two models of its own; some bytes are in both."""
    shared = content(9 * chunk_bytes() + 100, seed=1)
    return {
        "a/w.safetensors": content(12 * chunk_bytes() + 1, seed=2),
        "a/shared.bin": shared,
        "a/config.json": b'{"model": "a"}',
        "b/w.safetensors": content(7 * chunk_bytes(), seed=3),
        "b/shared.bin": shared,
        "b/config.json": b'{"model": "b"}',
        "empty": b"",
        "top.bin": content(5 * chunk_bytes() + 77, seed=4),
    }


class SlowSource:
    """A source that hands out a quarter of a chunk at a time, and takes its time for it."""

    def __init__(self, inner: MeteredSource) -> None:
        self._inner = inner

    @property
    def origin(self) -> Origin:
        return self._inner.origin

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        return self._inner.list(uri, cancel)

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        return _SlowBody(self._inner.open(file, span, cancel))

    def close(self) -> None:
        self._inner.close()


class _SlowBody:
    def __init__(self, inner: Body) -> None:
        self._inner = inner

    @property
    def stated(self) -> tuple[Digest, ...]:
        return self._inner.stated

    def readinto(self, buffer: memoryview) -> int:
        time.sleep(PACE_S)
        return self._inner.readinto(buffer[: chunk_bytes() // 4])

    def close(self) -> None:
        self._inner.close()

    def abort(self) -> None:
        self._inner.abort()


@dataclass
class Child:
    """One process and what it has read from the origin."""

    pid: int
    name: str
    board: Board
    killed: bool = False


class FlightRounds:
    """Rounds on one store, each beginning and ending with nothing in it.

    Attributes:
        kills: processes that were killed before their end.
    """

    def __init__(self, directory: Path, processes: int, known_by: str, seed: int) -> None:
        self.kills = 0
        self._known_by = known_by
        self._processes = processes
        self._random = random.Random(seed)
        self._bench = Bench(directory, Board(), models={"all": family()})
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir()
        self._bench.offer("all")
        self._bench.store().close()

    def play(self, *, kill: bool) -> list[str]:
        """One round; what went wrong."""
        children = [self._begin(self._random.choice(URIS[self._known_by])) for _ in range(self._processes)]
        doomed = self._random.sample(children, self._random.randint(1, len(children))) if kill else []
        problems = [problem for child in doomed for problem in self._kill(child)]
        problems += [problem for child in children if child not in doomed for problem in self._await(child)]
        problems += audit(self._bench.root, Moment.CRASHED)
        for name in URIS[self._known_by]:  # And now everything, by nobody who dies.
            children.append(self._begin(name))
            problems += self._await(children[-1])
        killed = sum(child.killed and child.board.fetched_bytes > 0 for child in children)
        self.kills += sum(child.killed for child in children)
        problems += self._counted(sum(child.board.fetched_bytes for child in children), killed)
        return problems + self._looked_at() + self._emptied()

    def _begin(self, name: str) -> Child:
        child = Child(0, name, Board())
        child.pid = os.fork()
        if child.pid == 0:
            code = 1
            try:
                signal.alarm(CHILD_DEADLINE_S)
                self._ensure(child)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        return child

    def _ensure(self, child: Child) -> None:
        with running_engine(requests=1) as engine, self._bench.store() as store:
            source = SlowSource(MeteredSource(child.board, state=STATES[self._known_by], cut=None))
            Ensure(store, engine, source, self._bench.uri(child.name), priority=Priority.WAITING, route=None).run(Cancellation())

    def _kill(self, child: Child) -> list[str]:
        """SIGKILL at a random instant: as a rule when it has read so much, if it comes to read anything."""
        instant_s = time.monotonic() + self._random.uniform(0.0, KILLED_AFTER_S)
        enough_bytes = self._random.choice([0, self._random.randrange(20 * chunk_bytes())])
        while time.monotonic() < instant_s and not 0 < enough_bytes <= child.board.fetched_bytes:
            time.sleep(PACE_S)
        os.kill(child.pid, signal.SIGKILL)
        child.killed = True
        code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        child.killed = code != 0
        return [] if code in (0, -signal.SIGKILL) else [f"`{child.name}` ended with {code}"]

    def _await(self, child: Child) -> list[str]:
        code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        return [] if code == 0 else [f"`{child.name}` ended with {code}"]

    def _counted(self, got_bytes: int, killed: int) -> list[str]:
        files = family()
        once = sum(map(len, set(files.values()) if self._known_by == "sha256" else files.values()))
        most = once + killed * chunk_bytes()
        if once <= got_bytes <= most:
            return []
        return [f"{got_bytes} bytes came, {once} are wanted, and {killed} that read were killed, with one chunk at most on their way"]

    def _looked_at(self) -> list[str]:
        problems = []
        for name in URIS[self._known_by]:
            store = self._bench.store()
            snapshot = store.snapshot(self._bench.digest(store, name))
            below = name.removeprefix("all").lstrip("/")
            wanted = {path.removeprefix(f"{below}/"): data for path, data in family().items() if path.startswith(below)}
            assert snapshot is not None
            shown = [path for path in snapshot.path.rglob("*") if path.is_file()]
            if {str(path.relative_to(snapshot.path)): path.read_bytes() for path in shown} != wanted:
                problems.append(f"`{name}` shows other files or bytes than the origin has")
        return problems

    def _emptied(self) -> list[str]:
        for name in URIS[self._known_by]:
            self._bench.evict(name)
        self._bench.settle()
        found = audit(self._bench.root, Moment.SETTLED)
        left = self._bench.store().usage()
        if (left.blobs_bytes, left.ingest_bytes, left.trash_bytes) != (0, 0, 0):
            found.append(f"not all room came back: {left}")
        return found


@contextmanager
def quick_looks() -> Iterator[None]:
    """Who waits looks often."""
    kept = modelcache.fetch.lookout.LOOK_S
    modelcache.fetch.lookout.LOOK_S = 0.01
    try:
        yield
    finally:
        modelcache.fetch.lookout.LOOK_S = kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="emptied at first")
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--known-by", choices=sorted(STATES), required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    problems = []
    with small_chunks_everywhere(), quick_looks():
        rounds = FlightRounds(given.directory, given.processes, given.known_by, given.seed)
        for number in range(given.rounds):
            problems += [f"round {number}: {problem}" for problem in rounds.play(kill=number % 4 != 0)]
    print(json.dumps({"kills": rounds.kills, "problems": problems}))  # noqa: T201 - read by who started this process


if __name__ == "__main__":
    main()
