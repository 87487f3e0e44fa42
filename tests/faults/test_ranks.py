"""Ranks as processes: slices bit by bit, every byte from the disk once, and what happens to the others when one dies or stands still."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from modelcache.abc.ingest import Route
from modelcache.errors import GroupBroken
from modelcache.loader.meeting import Arrival, Terms, meet
from modelcache.loader.plan import BLOCK_BYTES
from modelcache.loader.residency import resident_share
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.testing.fault_server import Call, FaultServer
from modelcache.units import MIB
from tests.faults.ranks import Crew, Order, crew, digest_of, disk_bytes

DIMS: dict[str, int | None] = {"*.rows": 0, "*.columns": 1, "norm.*": None}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Crew]:
    with crew() as running:
        yield running


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """34 MiB: rows that ranks read alone, columns and norms that they share."""
    source = torch.Generator().manual_seed(3)

    def made(*shape: int) -> torch.Tensor:
        return torch.randint(0, 2**15, shape, dtype=torch.int16, generator=source)

    found: dict[str, torch.Tensor] = {}
    for layer in range(4):
        found |= {f"{layer}.rows": made(2048, 1024), f"{layer}.columns": made(1024, 2048), f"norm.{layer}": made(64 * 1024)}
    return found | {"large.columns": made(2048, 4096)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, torch.Tensor]) -> Path:
    """Two files."""
    root = tmp_path_factory.mktemp("ranks")
    names = sorted(tensors)
    for number in (1, 2):
        save_file({name: tensors[name] for name in names[number - 1 :: 2]}, root / f"model-{number}.safetensors")
    return root


def expected(tensors: dict[str, torch.Tensor], rank: int, world: int) -> dict[str, str]:
    def part(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name.startswith("norm"):
            return tensor
        return tensor.chunk(world, 0 if name.endswith("rows") else 1)[rank]

    return {name: digest_of(part(name, tensor)) for name, tensor in tensors.items()}


@pytest.mark.parametrize(("world", "memory_bytes"), [(2, 256 * MIB), (4, 256 * MIB), (4, BLOCK_BYTES)])
def test_slices_bit_by_bit_and_every_byte_read_once(
    ranks: Crew, model: Path, tensors: dict[str, torch.Tensor], world: int, memory_bytes: int
) -> None:
    answers = ranks.load(Order(str(model), world, DIMS, memory_bytes=memory_bytes))
    assert {rank: said["digests"] for rank, said in answers.items()} == {rank: expected(tensors, rank, world) for rank in range(world)}
    size_bytes = sum(path.stat().st_size for path in model.iterdir())
    assert size_bytes * 0.99 <= disk_bytes(answers) <= size_bytes * 1.05
    assert all(said["read_bytes"]["shared"] > 0 and said["left"] == [] for said in answers.values())
    shared = {size for said in answers.values() for size in said["segments"]}
    assert len(shared) == 1
    assert shared.pop() <= memory_bytes


def test_alone_each_reads_what_it_needs(ranks: Crew, model: Path, tensors: dict[str, torch.Tensor]) -> None:
    answers = ranks.load(Order(str(model), 2, DIMS, group=False))
    assert {rank: said["digests"] for rank, said in answers.items()} == {rank: expected(tensors, rank, 2) for rank in range(2)}
    rows_bytes = sum(tensor.nbytes for name, tensor in tensors.items() if name.endswith("rows"))
    size_bytes = sum(path.stat().st_size for path in model.iterdir())
    assert 0.99 < disk_bytes(answers) / (2 * size_bytes - rows_bytes) <= 1.05


def test_what_is_in_memory_is_mapped_by_each(ranks: Crew, model: Path, tensors: dict[str, torch.Tensor]) -> None:
    for path in model.iterdir():
        path.read_bytes()
    answers = ranks.load(Order(str(model), 2, DIMS, may_map=True))
    assert {rank: said["digests"] for rank, said in answers.items()} == {rank: expected(tensors, rank, 2) for rank in range(2)}
    if _resident(model):  # else the kernel doesn't say so
        assert disk_bytes(answers) == 0
        assert all(set(said["read_bytes"]) == {"mapped"} for said in answers.values())


def _resident(model: Path) -> bool:
    for path in model.iterdir():
        with path.open("rb") as file:
            if resident_share(file.fileno(), ByteRange(0, path.stat().st_size)) != 1.0:
                return False
    return True


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_one_is_killed(ranks: Crew, model: Path, victim: int) -> None:
    """The first rank too: after the meeting it is like the others."""
    order = Order(str(model), 3, {"norm.*": None}, memory_bytes=BLOCK_BYTES, hold=victim)
    answers = _after(ranks, order, signal.SIGKILL)
    assert set(answers) == {0, 1, 2} - {victim}
    for said in answers.values():
        assert (said["code"], said["left"]) == ("group-broken", [])
        assert said["error"].startswith(f"rank {victim} of the group ended before its load did")
    address = Arrival(ranks.group, 0, (0,), "", 1.0).address
    assert address[1:] not in Path("/proc/net/unix").read_text()


def test_one_stands_still(ranks: Crew, model: Path) -> None:
    order = Order(str(model), 2, {"norm.*": None}, memory_bytes=BLOCK_BYTES, hold=1, timeout_s=3.0)
    begun = ranks.begin(order)
    pid = next(begun)["pid"]
    os.kill(pid, signal.SIGSTOP)
    said = next(begun)
    os.kill(pid, signal.SIGKILL)
    assert list(begun) == []
    assert (said["rank"], said["code"], said["left"]) == (0, "group-broken", [])
    assert "no block came within 3 s" in said["error"]


class Origin:
    """A model that arrives: of its last byte nothing is served until the gate is open."""

    def __init__(self, server: FaultServer, tensors: dict[str, torch.Tensor]) -> None:
        self.gate = threading.Event()
        self.data = save({name: tensors[name] for name in sorted(tensors)})
        self.uri = f"{server.endpoint}/model.safetensors"
        self.sent_bytes = 0
        server.put("/model.safetensors", self.data)
        server.fail("/model.safetensors", self._serve)

    def brought_to(self, ranks: Crew, order: Order) -> dict[int, dict[str, Any]]:
        """What the ranks say in the end; the last byte is served when all have seen that it isn't here."""
        answers, begun = {}, 0
        for said in ranks.begin(order):
            begun += "begun" in said
            if begun == order.world:
                self.gate.set()
            answers[said["rank"]] = said
        return answers

    def _serve(self, call: Call) -> None:
        body = b"" if call.received.method == "HEAD" else call.proper.body
        held = 1 if body and body[-1:] == self.data[-1:] and str(len(self.data) - 1) in call.proper.headers.get("Content-Range", "") else 0
        call.send(call.proper.head() + body[: len(body) - held])
        while held and not self.gate.wait(0.05):
            if call.ended.is_set():
                return
        call.send(body[len(body) - held :])
        self.sent_bytes += len(body) if len(body) > 1 else 0  # a byte is what each rank sees that there is such a file by


@pytest.fixture
def origin(tensors: dict[str, torch.Tensor]) -> Iterator[Origin]:
    with FaultServer() as server:
        yield Origin(server, tensors)


@pytest.mark.parametrize(("world", "brings", "route"), [(2, 1, Route.DIRECT), (4, 0, Route.BUFFERED)])
def test_of_a_model_that_arrives_slices_bit_by_bit_of_bytes_that_one_rank_fetches(
    ranks: Crew, origin: Origin, tensors: dict[str, torch.Tensor], tmp_path: Path, world: int, brings: int, route: Route
) -> None:
    """Around the page cache they share memory; through it, they map it."""
    order = Order(origin.uri, world, DIMS, memory_bytes=BLOCK_BYTES, root=str(tmp_path), brings=brings, route=route, may_map=True)
    answers = origin.brought_to(ranks, order)
    assert {rank: said.get("digests", said) for rank, said in answers.items()} == {
        rank: expected(tensors, rank, world) for rank in range(world)
    }
    assert origin.sent_bytes == len(origin.data)
    assert [rank for rank, said in answers.items() if set(said["read_bytes"]) != {"shared"}] == [brings]
    assert {size for said in answers.values() for size in said["segments"]} == ({BLOCK_BYTES} if route is Route.DIRECT else set())
    assert all(said["left"] == [] for said in answers.values())


@pytest.mark.parametrize(("brings", "victim"), [(1, 1), (1, 0), (0, 2)])
def test_of_a_model_that_arrives_one_is_killed(ranks: Crew, origin: Origin, tmp_path: Path, brings: int, victim: int) -> None:
    """In the middle, with tensors in its hands; what is left is gone on with."""
    order = Order(origin.uri, 3, {"norm.*": None}, root=str(tmp_path), brings=brings, hold=victim)
    answers = _after(ranks, order, signal.SIGKILL)
    assert set(answers) == {0, 1, 2} - {victim}
    for said in answers.values():
        assert (said["code"], said["left"]) == ("group-broken", [])
        assert said["error"].startswith(f"rank {victim} of the group ended before its load did")
    answers = origin.brought_to(ranks, Order(origin.uri, 3, {"norm.*": None}, root=str(tmp_path)))
    assert all("digests" in said for said in answers.values()), answers


def test_of_a_model_that_arrives_the_one_that_brings_it_stands_still(ranks: Crew, origin: Origin, tmp_path: Path) -> None:
    order = Order(origin.uri, 2, {"norm.*": None}, memory_bytes=BLOCK_BYTES, root=str(tmp_path), brings=1, hold=1, timeout_s=3.0)
    begun = (said for said in ranks.begin(order) if "begun" not in said)
    pid = next(begun)["pid"]
    os.kill(pid, signal.SIGSTOP)
    origin.gate.set()
    said = next(begun)
    os.kill(pid, signal.SIGKILL)
    assert list(begun) == []
    assert (said["rank"], said["code"], said["left"]) == (0, "group-broken", [])
    assert "no block came within 3 s" in said["error"]


@pytest.mark.parametrize("absent", [0, 1])
def test_one_never_comes(ranks: Crew, model: Path, absent: int) -> None:
    answers = ranks.load(Order(str(model), 2, DIMS, absent=absent, timeout_s=0.3))
    [said] = answers.values()
    assert said["code"] == "group-broken"
    assert ("missing: 1" if absent else "rank 0 did not come") in said["error"]


def _after(ranks: Crew, order: Order, what: signal.Signals) -> dict[int, Any]:
    """What the ranks say after the one that holds was sent a signal."""
    answers = {}
    for said in ranks.begin(order):
        if "pid" in said:
            os.kill(said["pid"], what)
        elif "begun" not in said:
            answers[said["rank"]] = said
    return answers


STRANGER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
address = sys.argv[1].encode().replace(b"@", bytes(1))
if sys.argv[2] == "listen":
    link.bind(address); link.listen()
    print("ready", flush=True)
    input()
else:
    while True:
        try:
            link.connect(address)
            break
        except ConnectionRefusedError:
            pass
    link.send(sys.argv[3].encode())
    print(link.recv(100000), flush=True)
"""


@pytest.mark.root
def test_another_user_gets_nothing_and_may_not_stand_in() -> None:
    def arrival(rank: int) -> Arrival:
        return Arrival(f"stranger-{os.getpid()}", rank, (0, 1), "same", 1.0)

    address = arrival(0).address.replace("\0", "@")

    def stranger(act: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", STRANGER, address, act, json.dumps(arrival(1).said)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with stranger("connect") as caller:
        with pytest.raises(GroupBroken, match="missing: 1"):
            meet(arrival(0), lambda: Terms(1, frozenset()), Cancellation())
        if caller.poll() is None:
            caller.kill()
        assert caller.stdout is not None
        assert caller.stdout.read() in ("", "b''\n")  # in time or not: no memory, no link
    with stranger("listen") as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        with pytest.raises(GroupBroken, match="another user") as caught:
            meet(arrival(1), lambda: Terms(1, frozenset()), Cancellation())
        assert (caught.value.expected, caught.value.got) == ("uid 0", "uid 65534")
        with pytest.raises(GroupBroken, match="can't open it"):
            meet(arrival(0), lambda: Terms(1, frozenset()), Cancellation())
        listener.kill()
