"""SIGTERM, to the real agent with a fetch under way: what ends in time is answered, what doesn't is kept as far as it came."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from modelcache.agent.client import AgentClient, Had
from modelcache.chunks import CHUNK_BYTES
from modelcache.errors import AgentDraining, AgentUnreachable, Cancelled
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.fault_server import Call, FaultServer
from modelcache.testing.polling import until
from tests.cli.conftest import WEIGHTS, stalled_from

DEADLINE_S = 60.0


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as made:
        made.put("/m/weights", WEIGHTS)
        yield made


def begun(node: RunningAgent, client: AgentClient, server: FaultServer, threads: ThreadPoolExecutor) -> Future[Had]:
    """A fetch that has its first chunk, and the signal."""
    asked = threads.submit(client.ensure, f"{server.endpoint}/m/weights", lease=("pod", 600.0))
    until(lambda: any(each.bytes_done == CHUNK_BYTES for each in client.status(brief=True).moving), "the first chunk")
    [pid] = node.process.pids()
    psutil.Process(pid).send_signal(signal.SIGTERM)
    until(lambda: client.status(brief=True).draining, "the drain")
    return asked


def ended(node: RunningAgent, directory: Path) -> list[dict[str, object]]:
    """The lines of its log, when it has, as it should."""
    log = directory / "agent.log"
    until(lambda: "ended by itself: exit status 0" in log.read_text(), "the agent to end")
    assert not node.admin.exists()
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def test_what_ends_within_the_grace_period_is_answered(tmp_path: Path, server: FaultServer) -> None:
    go = threading.Event()

    def when_told(call: Call) -> None:
        begin, _, end = call.received.headers["range"].removeprefix("bytes=").partition("-")
        at = len(call.proper.body) if int(end) < CHUNK_BYTES else max(0, CHUNK_BYTES - int(begin))
        call.send(call.proper.head() + call.proper.body[:at])
        assert int(end) < CHUNK_BYTES or go.wait(DEADLINE_S)
        call.send(call.proper.body[at:])

    server.fail("/m/weights", when_told)
    with agent(tmp_path, options=["--grace", "60"]) as node, AgentClient(node.admin) as client, ThreadPoolExecutor(1) as threads:
        asked = begun(node, client, server, threads)
        with pytest.raises(AgentDraining):
            client.ensure(f"{server.endpoint}/m/other")
        go.set()
        had = asked.result(DEADLINE_S)
        assert (had.snapshot.path / "weights").read_bytes() == WEIGHTS
        assert [line.get("event") for line in ended(node, tmp_path)][-1] == "ended"
    with agent(tmp_path, through=["sh", "-c", 'ulimit -Sn 256; exec "$0" "$@"']) as node, AgentClient(node.admin) as client:
        assert [lease for info in client.list() for lease in info.leases] == [had.lease]
        soft, hard = psutil.Process(node.process.pids()[0]).rlimit(psutil.RLIMIT_NOFILE)
        assert soft == hard > 256  # of who fetches for many at once


def test_what_does_not_is_broken_off_and_goes_on_from_there(tmp_path: Path, server: FaultServer) -> None:
    server.fail("/m/weights", stalled_from(CHUNK_BYTES))
    with agent(tmp_path, options=["--grace", "0.5"]) as node, AgentClient(node.admin) as client, ThreadPoolExecutor(1) as threads:
        asked = begun(node, client, server, threads)
        with pytest.raises((Cancelled, AgentUnreachable)):
            asked.result(DEADLINE_S)
        log = ended(node, tmp_path)
        assert log[-1].get("event") == "ended"
        assert any("1 calls are cancelled" in str(line["message"]) for line in log)
        assert not any("traceback" in line for line in log)
    asked_before = len(server.received)
    server.fail("/m/weights", lambda call: call.reply(call.proper))
    with agent(tmp_path) as node, AgentClient(node.admin) as client:
        had = client.ensure(f"{server.endpoint}/m/weights")
        assert (had.snapshot.path / "weights").read_bytes() == WEIGHTS
        assert [lease for info in client.list() for lease in info.leases] == []
    ranges = [each.headers.get("range", "") for each in server.received[asked_before:]]
    assert not [each for each in ranges if each.startswith("bytes=0-") and each != "bytes=0-0"], ranges
