"""Ranks as processes: a program that forks them, several loads one after the other. `python -m tests.faults.ranks`.

One process imports torch, for all of them. An order is a line of JSON on standard input; each rank answers with a line, and `end` follows.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from modelcache.abc.ingest import Route

DEADLINE_S = 100.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Order:
    """A load by several ranks.

    Attributes:
        path: a directory, or a URI.
        dims: the plan: tensor name or pattern → dimension, or None.
        hold: the rank that stops after its first tensor, says so, and waits to be killed; -1: none.
        absent: the rank that is not started; -1: none.
        root: of the store, for a URI.
        brings: the rank whose process fetches it: the others are started when it has begun to; -1: whichever.
        route: on which it is written.
    """

    path: str
    world: int
    dims: dict[str, int | None] = field(default_factory=dict)
    group: bool = True
    memory_bytes: int = 256 << 20
    timeout_s: float = DEADLINE_S
    may_map: bool = False
    hold: int = -1
    absent: int = -1
    root: str = ""
    brings: int = -1
    route: str = Route.BUFFERED


class Crew:
    """The test's side of the program."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._held = b""

    @property
    def group(self) -> str:
        """The name of its ranks' group."""
        return f"test-{self._process.pid}"

    def begin(self, order: Order) -> Iterator[dict[str, Any]]:
        """What each rank says, as it does."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        while (said := self._line()) != {"end": True}:
            yield said

    def load(self, order: Order) -> dict[int, dict[str, Any]]:
        """What each rank says in the end, by rank."""
        return {said["rank"]: said for said in self.begin(order)}

    def _line(self) -> Any:
        assert self._process.stdout is not None
        while b"\n" not in self._held:
            ready, _, _ = select.select([self._process.stdout], [], [], DEADLINE_S)
            assert ready, "no rank says anything"
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            assert data, "the program ended"
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return json.loads(line)


@contextmanager
def crew() -> Iterator[Crew]:
    """Ended with the block, and with it its ranks."""
    command = [sys.executable, "-m", "tests.faults.ranks"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            yield Crew(process)
        finally:
            process.kill()


def say(what: Mapping[str, Any]) -> None:
    """A line, in one piece: several processes write."""
    os.write(sys.stdout.fileno(), json.dumps(what).encode() + b"\n")


def digest_of(tensor: Any) -> str:
    """Of a tensor's bits."""
    import torch

    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy()).hexdigest()


def cache_at(order: Order) -> Any:
    import modelcache
    from modelcache.config import Config
    from modelcache.testing.store_fixtures import NO_LIMITS

    return modelcache.ModelCache(config=Config.load({}, root=order.root, limits=NO_LIMITS, write_route=Route(order.route)))


def segments() -> list[int]:
    """Sizes of the shared memory that this process has mapped, in bytes."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:modelcache-group" in line]
    spans = [line.split()[0].split("-") for line in lines]
    return [int(stop, 16) - int(start, 16) for start, stop in spans]


def load(order: Order, rank: int) -> dict[str, Any]:
    """One rank's load."""
    import modelcache
    from modelcache.errors import ModelCacheError
    from modelcache.loader import loading
    from modelcache.loader.report import LoadReport

    if order.hold == rank:
        loading.AHEAD_BYTES = 1  # it takes no block of the second file before it is asked for one
    report = LoadReport()
    group = modelcache.NodeGroup(f"test-{os.getppid()}", memory_bytes=order.memory_bytes, timeout_s=order.timeout_s)
    digests: dict[str, str] = {}
    seen_segments: list[int] = []
    try:
        tensors = modelcache.stream(
            order.path,
            shard=(rank, order.world, order.dims),
            group=group if order.group else None,
            may_map=order.may_map,
            report=report,
            cache=cache_at(order) if order.root else None,
        )
        for name, tensor in tensors:
            if order.hold == rank:
                say({"rank": rank, "pid": os.getpid()})
                signal.pause()
            seen_segments = seen_segments or segments()
            digests[name] = digest_of(tensor)
    except ModelCacheError as error:
        return {"rank": rank, "code": str(error.code), "error": str(error), "left": segments()}
    return {
        "rank": rank,
        "digests": digests,
        "read_bytes": {str(way): count for way, count in report.read_bytes.items() if count},
        "segments": seen_segments,
        "left": segments(),
    }


def main() -> None:
    """Carry out orders until there are none."""
    import torch

    import modelcache.loader.sharded
    import modelcache.loading  # noqa: F401  no rank has to import them

    torch.set_num_threads(1)
    for line in sys.stdin:
        order = Order(**json.loads(line))
        others = [rank for rank in range(order.world) if rank not in (order.absent, order.brings)]
        pids = [_begun(order)] if order.brings >= 0 else []
        pids += [_fork(order, rank) for rank in others]
        for pid in pids:
            os.waitpid(pid, 0)
        say({"end": True})


def _begun(order: Order) -> int:
    """The rank that brings the model, when it does."""
    read, write = os.pipe()
    pid = _fork(order, order.brings, write)
    os.close(write)
    os.read(read, 1)
    os.close(read)
    return pid


def _fork(order: Order, rank: int, begun: int = -1) -> int:
    pid = os.fork()
    if pid:
        return pid
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    status = 1
    try:
        with _telling(rank, begun):
            said = load(order, rank)
        say(said)
        status = 0
    finally:
        os._exit(status)


@contextmanager
def _telling(rank: int, begun: int) -> Iterator[None]:
    """A line, and a byte to who waits, when this rank comes to the others: then it has begun to fetch, or seen that another does."""
    from modelcache.loader.council import Council

    convened = Council.convened

    def telling(*given: Any) -> Council:
        say({"rank": rank, "begun": True})
        if begun >= 0:
            os.write(begun, b".")
        return convened(*given)

    with patch.object(Council, "convened", telling):
        yield


def disk_bytes(answers: Mapping[int, Mapping[str, Any]]) -> int:
    """Read from the disk, or copied out of the page cache, by all ranks together."""
    return sum(count for said in answers.values() for way, count in said["read_bytes"].items() if way not in ("shared", "mapped"))


if __name__ == "__main__":
    main()
