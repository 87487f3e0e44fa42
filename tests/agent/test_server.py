"""The agent's server in this process, where a test says what happens in the middle of a call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daemonset.calls import Calls
from daemonset.server import Agent, Sockets
from modelcache.agent.client import AgentClient
from modelcache.config import Config
from modelcache.errors import NotCached, UnknownScheme
from modelcache.testing.fault_server import FaultServer


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
    with Agent(Config.load({"HOME": "/nonexistent"}, root=tmp_path / "store"), Sockets(socket), grace_s=10.0) as made:
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
@pytest.mark.parametrize("letter", ["x", "%25", "é"])
def test_long_errors_keep_their_class_and_the_ends_of_their_values(socket: Path, letter: str) -> None:
    name = f"{letter * 60_000}the-end"
    with AgentClient(socket) as client:
        with pytest.raises(UnknownScheme) as told:
            client.ensure(f"nosuch://{name}")
        assert told.value.hint is not None
        with pytest.raises(NotCached, match="the-end"):
            client.show(f"http://host/{name}")
