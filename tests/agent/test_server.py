"""The agent's server in this process, where a test says what happens in the middle of a call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from http import HTTPStatus
from pathlib import Path
from socket import AF_INET6
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from daemonset import server as server_module
from daemonset.calls import RETRY_AFTER_S, Calls
from daemonset.reviews import nobody
from daemonset.server import Agent, Sockets
from daemonset.web import TEXT, Pages, Web
from modelcache.abc.snapshot import Snapshot
from modelcache.abc.store import Lease
from modelcache.agent import client as client_module
from modelcache.agent.client import AgentClient, Identity
from modelcache.agent.v1 import agent_pb2 as pb
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.digest import sha256
from modelcache.errors import AgentBusy, AgentUnreachable, BadConfig, Cancelled, NotCached, UnknownScheme
from modelcache.patience import Cancellation
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.store_fixtures import NO_LIMITS


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as made:
        made.put("/m/weights", b"w" * 100_000)
        yield made


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "a.sock"


@pytest.fixture
def served(tmp_path: Path, socket: Path) -> Iterator[Agent]:
    with Agent(Config.load({"HOME": "/nonexistent"}, root=tmp_path / "store", limits=NO_LIMITS), Sockets(socket), grace_s=10.0) as made:
        yield made


@pytest.mark.usefixtures("served")
def test_drains_do_not_wait_for_each_other(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, drain = threading.Barrier(2), Calls.drain

    def together(calls: Calls, timeout_s: float) -> int:
        both.wait(10)
        return drain(calls, timeout_s)

    with monkeypatch.context() as patched, AgentClient(socket) as client, ThreadPoolExecutor(2) as threads:
        patched.setattr(Calls, "drain", together)
        assert list(threads.map(client.drain, (3.0, 3.0))) == [0, 0]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("timeout_s", [float("nan"), float("inf"), -1.0])
def test_no_drain_takes_a_time_that_is_none(socket: Path, timeout_s: float) -> None:
    with AgentClient(socket) as client:
        with pytest.raises(BadConfig, match="at most 86400 seconds"):
            client._call(lambda: client._stub.Drain(pb.DrainRequest(timeout_s=timeout_s), timeout=10))
        assert not client.status(brief=True).draining


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("letter", ["x", "%25", "é"])
def test_long_errors_keep_their_class_and_the_ends_of_their_values(socket: Path, letter: str) -> None:
    name = f"{letter * 60_000}the-end"
    with AgentClient(socket) as client:
        with pytest.raises(UnknownScheme) as told:
            client.ensure(f"nosuch://{name}")
        assert told.value.hint is not None
        with pytest.raises(NotCached, match="the-end"):
            client.show(f"http://host/{name}")


@pytest.mark.usefixtures("served")
def test_a_long_list_is_one_call_and_what_is_too_long_is_told(socket: Path) -> None:
    with AgentClient(socket) as client:
        report = client.prewarm([f"nosuch://{'x' * 100_000}/{number}" for number in range(50)])
        assert len(report.failed) == 50
        with pytest.raises(BadConfig, match="no call of this size"):
            client.show("x" * (65 << 20))


@pytest.mark.usefixtures("served")
def test_an_agent_that_says_nothing_is_told_as_such(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Barrier(3)

    def ensure(*_: object, cancel: Cancellation, **__: object) -> None:
        ended = threading.Event()
        with cancel.on_cancel(ended.set):
            waiting.wait(10)
            ended.wait(10)

    monkeypatch.setattr(ModelCache, "ensure", ensure)
    monkeypatch.setattr(client_module, "SILENCE_S", 1.0)
    with AgentClient(socket) as client, ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(client.ensure, "http://host/x") for _ in range(2)]
        waiting.wait(10)
        assert [each.name for each in threading.enumerate()].count("agent silence") == 1
        for call in calls:
            with pytest.raises(AgentUnreachable, match="said nothing for 1 s"):
                call.result(10)


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("request_of", [{"priority": 9}, {"refresh": 9}])
def test_what_a_newer_client_says_is_bad_input(socket: Path, request_of: dict[str, int]) -> None:
    asked = pb.EnsureRequest(uri="http://127.0.0.1:1/x", **request_of)  # type: ignore[arg-type]  # an open enum's number
    with AgentClient(socket) as client, pytest.raises(BadConfig, match="knows no such"):
        list(client._told(client._stub.Ensure(asked), None))


@pytest.mark.usefixtures("served")
def test_a_lease_that_nobody_was_told_of_is_released(socket: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel, lease, release, ensure = Cancellation(), ModelCache.lease, ModelCache.release, ModelCache.ensure
    left, released, heard = threading.Event(), threading.Event(), threading.Event()

    def ensure_and_hear(cache: ModelCache, asked: str, **given: Any) -> Snapshot:
        found = ensure(cache, asked, **given)
        heard_by.enter_context(given["cancel"].on_cancel(heard.set))
        return found

    def lease_and_lose_the_client(cache: ModelCache, name: str, **given: Any) -> Lease:
        made = lease(cache, name, **given)
        cancel.cancel()
        assert heard.wait(10)  # else the agent may have sent all of it before it knew
        left.wait(10)
        return made

    def release_seen(cache: ModelCache, lease_id: str) -> bool:
        found = release(cache, lease_id)
        released.set()
        return found

    uri = f"{server.endpoint}/m/weights"
    monkeypatch.setattr(AgentClient, "_unless_unheard", lambda *_: nullcontext())  # it does nothing more, as who is killed
    monkeypatch.setattr(ModelCache, "ensure", ensure_and_hear)
    monkeypatch.setattr(ModelCache, "lease", lease_and_lose_the_client)
    monkeypatch.setattr(ModelCache, "release", release_seen)
    with ExitStack() as heard_by, AgentClient(socket) as client:
        with pytest.raises(Cancelled):
            client.ensure(uri, lease=("pod", 600.0), cancel=cancel)
        left.set()
        assert released.wait(10)
        assert client.show(uri).info.leases == ()
        monkeypatch.setattr(ModelCache, "lease", lease)
        kept = client.ensure(uri, lease=("pod", 600.0)).lease
        assert client.show(uri).info.leases == (kept,)


class Held:
    """`ModelCache.ensure` that lasts until it is let go. `here`: one more call is in it."""

    def __init__(self) -> None:
        self.here = threading.Semaphore(0)
        self.go = threading.Event()

    def ensure(self, *_: object, **__: object) -> Snapshot:
        self.here.release()
        self.go.wait(30)
        return Snapshot(sha256("0" * 64), Path("/nowhere"), stale=False)


def test_who_waits_leaves_threads_for_short_calls(tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    monkeypatch.setattr(ModelCache, "ensure", held.ensure)
    monkeypatch.setattr(server_module, "WAITERS", 2)
    monkeypatch.setattr(server_module, "SHORT_CALLS", 2)
    config = Config.load({"HOME": "/nonexistent"}, root=tmp_path / "store", limits=NO_LIMITS)
    with Agent(config, Sockets(socket), grace_s=10.0), AgentClient(socket) as client, ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(client.ensure, "http://host/x") for _ in range(2)]
        assert all(held.here.acquire(timeout=10) for _ in calls)
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs know no calls
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        assert client.status(brief=True, timeout_s=10).draining is False
        for ask in (lambda: client.ensure("http://host/x"), lambda: client.prewarm([]), client.verify):
            with pytest.raises(AgentBusy) as busy:
                ask()
            assert (busy.value.retryable, busy.value.expected, busy.value.retry_after_s) == (True, "2 at most", RETRY_AFTER_S)
        held.go.set()
        assert {call.result(10) for call in calls} == {client.ensure("http://host/x")}


def test_a_namespace_that_waits_for_what_never_comes_leaves_room_for_the_others(
    tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held()
    monkeypatch.setattr(ModelCache, "ensure", held.ensure)
    monkeypatch.setattr(server_module, "WAITERS", 4)
    config = Config.load({"HOME": "/nonexistent"}, root=tmp_path / "store", limits=NO_LIMITS)
    driver = tmp_path / "d.sock"
    with Agent(config, Sockets(socket, driver), grace_s=10.0), AgentClient(driver) as client, ThreadPoolExecutor(4) as threads:

        def ask(namespace: str) -> object:
            return client.ensure("http://host/x", identity=Identity(namespace, "default", {}))

        try:
            calls = [threads.submit(ask, "a") for _ in range(3)]
            assert all(held.here.acquire(timeout=10) for _ in calls)
            with pytest.raises(AgentBusy) as refused:
                ask("a")
            assert refused.value.expected == "3 at most"
            calls.append(threads.submit(ask, "b"))
            assert held.here.acquire(timeout=10)
            with pytest.raises(AgentBusy) as refused:
                ask("c")
            assert refused.value.expected == "4 at most"
        finally:
            held.go.set()
        assert len({call.result(10) for call in calls}) == 1
        assert all(ask(namespace) for namespace in ("a", "a", "c"))


@pytest.mark.usefixtures("served")
def test_two_hundred_clients_wait_at_once(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    monkeypatch.setattr(ModelCache, "ensure", held.ensure)
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(200))
        clients = [stack.enter_context(AgentClient(socket)) for _ in range(200)]
        calls = [threads.submit(client.ensure, "http://host/x") for client in clients]
        assert all(held.here.acquire(timeout=30) for _ in calls)
        assert clients[0].status(brief=True).draining is False
        held.go.set()
        assert len({call.result(30) for call in calls}) == 1


def test_a_second_socket_that_fails_ends_the_first(tmp_path: Path, socket: Path) -> None:
    agent = Agent(Config.load({"HOME": "/nonexistent"}, root=tmp_path / "store", limits=NO_LIMITS), Sockets(socket, tmp_path), grace_s=1.0)
    with pytest.raises(BadConfig, match="something else than a socket"), agent:
        pass
    assert agent._servers == []
    assert not socket.exists()


def test_health_is_served_over_ipv6() -> None:
    mapped = "::ffff:127.0.0.1"  # this machine's, where its loopback has no IPv6 address, too
    served = Pages({"/readyz": lambda accept: (HTTPStatus.OK, TEXT, b"ok\n")}, {})
    with Web((mapped, 0), served, nobody) as web, urlopen(f"http://127.0.0.1:{web.port}/readyz", timeout=10) as answer:
        assert answer.read() == b"ok\n"
        assert web._server.socket.family == AF_INET6
