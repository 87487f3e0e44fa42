"""Who goes first, and how fast, against the real agent with one request at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from modelcache.agent.client import AgentClient, Had
from modelcache.errors import AccessDenied, BadConfig
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase, Progress
from modelcache.sources.throttled import RateLimits
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.fault_server import Call, FaultServer
from modelcache.units import MIB

DEADLINE_S = 60.0
CHUNK = 4 * MIB
LISTED = "bytes=0-0"
"""What is asked for to learn a file's size and version."""
ENVIRON = {"MODELCACHE_REQUESTS": "1", "MODELCACHE_REFUSED_NETWORKS": "169.254.0.0/16"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with agent(tmp_path_factory.mktemp("t"), ENVIRON) as running:
        yield running


class Asking:
    """Asks for models of one server, each in a thread of its own."""

    def __init__(self, client: AgentClient, server: FaultServer) -> None:
        self._client = client
        self._server = server
        self._threads = ThreadPoolExecutor(8)

    def __call__(self, path: str, priority: Priority) -> Future[Had]:
        """Returns when its bytes are to be fetched."""
        fetching = threading.Event()

        def look(progress: Progress) -> None:
            if progress.phase is Phase.FETCHING:
                fetching.set()

        asked = self._threads.submit(self._client.ensure, f"{self._server.endpoint}{path}", priority=priority, progress=look)
        asked.add_done_callback(lambda _: fetching.set())
        assert fetching.wait(DEADLINE_S)
        return asked


def held(begun: threading.Event, gate: threading.Event) -> Callable[[Call], None]:
    """The proper answer, of which all but the first MiB comes when the gate is open."""

    def fault(call: Call) -> None:
        if gate.is_set() or call.received.headers.get("range", LISTED) == LISTED:
            call.reply(call.proper)
            return
        call.send(call.proper.head() + call.proper.body[:MIB])
        begun.set()
        assert gate.wait(DEADLINE_S)
        call.send(call.proper.body[MIB:])

    return fault


def asked_for(server: FaultServer) -> list[tuple[str, str]]:
    """Paths and ranges, in order; what listing asks is left out."""
    return [(each.target, each.headers.get("range", "")) for each in server.received if each.headers.get("range", LISTED) != LISTED]


def test_who_waits_has_every_next_chunk_and_the_prewarm_what_is_left(client: AgentClient, server: FaultServer) -> None:
    server.put("/m/prewarmed", b"p" * (6 * CHUNK))
    server.put("/m/awaited", b"a" * (2 * CHUNK + 1))
    begun, gate = threading.Event(), threading.Event()
    server.fail("/m/prewarmed", held(begun, gate))
    ask = Asking(client, server)
    prewarmed = ask("/m/prewarmed", Priority.PREWARM)
    assert begun.wait(DEADLINE_S)
    awaited = ask("/m/awaited", Priority.WAITING)
    gate.set()
    for each in (awaited, prewarmed):
        each.result(DEADLINE_S)
    assert asked_for(server) == [
        ("/m/prewarmed", f"bytes=0-{6 * CHUNK - 1}"),
        ("/m/awaited", f"bytes=0-{2 * CHUNK}"),
        ("/m/prewarmed", f"bytes={CHUNK}-{6 * CHUNK - 1}"),  # it left its request after the chunk it was at
    ]


def test_models_of_one_class_take_turns(client: AgentClient, server: FaultServer) -> None:
    server.put("/m/long", b"l" * (17 * CHUNK))
    begun, gate = threading.Event(), threading.Event()
    server.fail("/m/long", held(begun, gate))
    ask = Asking(client, server)
    asked = [ask("/m/long", Priority.PREWARM)]
    assert begun.wait(DEADLINE_S)
    for number in range(2):
        server.put(f"/m/{number}", bytes([number]) * CHUNK)
        asked.append(ask(f"/m/{number}", Priority.PREWARM))
    gate.set()
    for each in asked:
        each.result(DEADLINE_S)
    assert [path for path, _ in asked_for(server)] == ["/m/long", "/m/0", "/m/1", "/m/long"]


def test_rates_change_while_bytes_move(client: AgentClient, server: FaultServer, node: RunningAgent) -> None:
    server.put("/m/throttled", b"t" * (2 * CHUNK))
    assert client.set_rates(RateLimits(1)) == RateLimits()
    assert client.status().rates == RateLimits(1)
    asked = Asking(client, server)("/m/throttled", Priority.WAITING)  # that would take three months
    new = RateLimits(1 << 40, {"127.0.0.1": 1 << 40})
    assert client.set_rates(new) == RateLimits(1)
    asked.result(DEADLINE_S)
    assert client.status(brief=True).rates == new
    for wrong in (RateLimits(0), RateLimits(of={"h": -1}), RateLimits(of={"https://h/": 1})):
        with pytest.raises(BadConfig):
            client.set_rates(wrong)
    with AgentClient(node.driver) as driver, pytest.raises(AccessDenied, match="administrator"):
        driver.set_rates(RateLimits())
    assert client.set_rates(RateLimits()) == new
