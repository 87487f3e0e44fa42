"""Many clients of the real agent, and those who vanish."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from modelcache.agent.client import AgentClient
from modelcache.chunks import CHUNK_BYTES
from modelcache.errors import Cancelled
from modelcache.fetch.progress import Progress
from modelcache.patience import Cancellation
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.fault_server import Call, FaultServer
from modelcache.testing.polling import until
from tests.agent.test_seen import samples
from tests.cli.conftest import WEIGHTS, stalled_from
from tests.cli.executable import started

DEADLINE_S = 60.0
CLIENTS = 200
VANISHING = 3
"""As many as have a request at once when a fetch begins: theirs never end by themselves."""
ASK = """
import sys
from pathlib import Path
from modelcache.agent.client import AgentClient
with AgentClient(Path(sys.argv[1])) as client:
    client.ensure(sys.argv[2], lease=("pod", 600.0))
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with agent(tmp_path_factory.mktemp("c")) as running:
        yield running


def under_way(node: RunningAgent) -> float:
    return samples(node).get(("modelcache_ensures_under_way", "waiting"), 0)


def test_two_hundred_clients_at_once_have_one_fetch(node: RunningAgent, server: FaultServer) -> None:
    together = threading.Event()

    def when_all_wait(call: Call) -> None:
        while not together.is_set() and not call.ended.wait(0.05):
            if under_way(node) == CLIENTS:
                together.set()
        call.reply(call.proper)

    server.put("/m/shared", b"s" * 300_000)
    server.fail("/m/shared", when_all_wait)
    with ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as threads:
        clients = [stack.enter_context(AgentClient(node.admin)) for _ in range(CLIENTS)]
        had = list(threads.map(lambda client: client.ensure(f"{server.endpoint}/m/shared", lease=("pod", 600.0)), clients))
        assert {(each.snapshot.path / "shared").read_bytes() for each in had} == {b"s" * 300_000}
        held = {lease.id for info in clients[0].list() for lease in info.leases}
        assert held == {each.lease.id for each in had if each.lease is not None}
        assert all(threads.map(lambda pair: pair[0].release(pair[1]), zip(clients, held, strict=True)))
    assert together.is_set()
    fetched = [each for each in server.received if each.headers.get("range") == "bytes=0-299999"]
    assert len(fetched) == 1


@pytest.mark.parametrize("how", ["cancelled", "broken off"])
def test_who_leaves_a_hit_before_its_end_holds_nothing(node: RunningAgent, server: FaultServer, how: str) -> None:
    """Though the agent has sent all of it, and knows of nobody who left."""
    server.put("/m/hit", b"h" * 1000)
    cancel = Cancellation()
    with AgentClient(node.admin) as client, AgentClient(node.admin) as other:

        def leave(look: Progress) -> None:
            assert look.hit
            until(lambda: bool(other.list()[0].leases), "the lease")
            if how == "broken off":
                raise KeyboardInterrupt
            cancel.cancel()

        client.ensure(f"{server.endpoint}/m/hit")
        with pytest.raises((Cancelled, KeyboardInterrupt)):
            client.ensure(f"{server.endpoint}/m/hit", lease=("pod", 600.0), progress=leave, cancel=cancel)
        assert [info.leases for info in other.list() if info.leases] == []


def test_clients_that_vanish_in_mid_stream_leave_nothing(node: RunningAgent, server: FaultServer) -> None:
    """Killed, each in the middle of a fetch of its own; what the first ones left is what the second ones do."""
    [pid] = node.process.pids()
    process = psutil.Process(pid)
    _killed(node, server, 0)
    left = process.num_fds(), process.num_threads()
    _killed(node, server, 1)
    until(lambda: process.num_fds() <= left[0] and process.num_threads() <= left[1], "what they used to be given back")
    with AgentClient(node.admin) as client:
        assert [lease for info in client.list() for lease in info.leases] == []
        server.fail("/m/0-0", lambda call: call.reply(call.proper))
        had = client.ensure(f"{server.endpoint}/m/0-0")  # and its chunk is no obstacle
        assert (had.snapshot.path / "0-0").read_bytes() == WEIGHTS


def _killed(node: RunningAgent, server: FaultServer, number: int) -> None:
    uris = []
    for each in range(VANISHING):
        server.put(f"/m/{number}-{each}", WEIGHTS)
        server.fail(f"/m/{number}-{each}", stalled_from(CHUNK_BYTES))
        uris.append(f"{server.endpoint}/m/{number}-{each}")
    with ExitStack() as stack, AgentClient(node.admin) as client:
        here = Path(__file__).parents[2]
        asking = [
            stack.enter_context(started([sys.executable, "-c", ASK, str(node.admin), uri], cwd=here, stderr=subprocess.DEVNULL))
            for uri in uris
        ]
        until(
            lambda: sum(each.bytes_done == CHUNK_BYTES for each in client.status(brief=True).moving) == VANISHING,
            "all of them to have a chunk",
        )
        for one in asking:
            one.kill()
        until(lambda: not client.status(brief=True).moving and under_way(node) == 0, "nothing to be under way")
