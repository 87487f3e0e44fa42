"""What the real agent takes of memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from modelcache.agent.client import AgentClient
from modelcache.chunks import CHUNK_BYTES
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.fault_server import Call, FaultServer
from modelcache.testing.polling import until
from modelcache.units import MIB

FETCHES = 8
MOST_BYTES = 300 * MIB
"""Of resident memory, at its peak; `bench.agent` measures less than half of it."""


def peak_bytes(node: RunningAgent) -> int:
    [pid] = node.process.pids()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@pytest.mark.parametrize("blobs", [300, pytest.param(5000, marks=pytest.mark.soak)])
def test_many_blobs_and_eight_fetches_take_less_than_300_mib(tmp_path: Path, blobs: int) -> None:
    """What a blob takes is in the larger number alone; in both, what threads, buffers and libraries do."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(blobs):
        (many / f"{number}").write_bytes(b"%d" % number)
    together = threading.Event()

    def when_all_are_there(call: Call) -> None:
        assert call.received.headers.get("range") == "bytes=0-0" or together.wait(60)
        call.reply(call.proper)

    with FaultServer() as server, agent(tmp_path) as node, ExitStack() as stack:
        clients = [stack.enter_context(AgentClient(node.admin)) for _ in range(FETCHES)]
        clients[0].ensure(f"file://{many}")
        for number in range(FETCHES):
            server.put(f"/m/{number}", bytes([number]) * (8 * CHUNK_BYTES))
            server.fail(f"/m/{number}", when_all_are_there)
        with ThreadPoolExecutor(FETCHES) as threads:
            asked = [threads.submit(client.ensure, f"{server.endpoint}/m/{number}") for number, client in enumerate(clients)]
            until(lambda: len(clients[0].status(brief=True).moving) == FETCHES, "all fetches to be under way")
            together.set()
            assert len({each.result().snapshot.digest for each in asked}) == FETCHES
        assert len(clients[0].list()) == FETCHES + 1
        assert sum(info.file_count for info in clients[0].list()) == blobs + FETCHES
        usage = clients[0].status().usage
        assert usage is not None
        assert usage.snapshots == FETCHES + 1
        assert peak_bytes(node) < MOST_BYTES
