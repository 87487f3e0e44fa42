"""The calls of the agent, by its client, against the real process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from modelcache.agent.client import AgentClient, Identity
from modelcache.cache import ModelCache
from modelcache.cli.main import main
from modelcache.config import Config
from modelcache.errors import (
    AccessDenied,
    AgentUnreachable,
    BadConfig,
    InUse,
    InvalidUri,
    ModelCacheError,
    NotCached,
    NotFound,
    UnknownScheme,
)
from modelcache.fetch.progress import Progress
from modelcache.sources.throttled import RateLimits
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.store_fixtures import NO_LIMITS

ENVIRON = {"MODELCACHE_REFUSED_NETWORKS": "169.254.0.0/16"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with agent(tmp_path_factory.mktemp("a"), ENVIRON) as running:
        yield running


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as made:
        made.put("/m/weights", b"w" * 100_000)
        yield made


def test_a_model_is_fetched_held_shown_and_removed(client: AgentClient, server: FaultServer, node: RunningAgent) -> None:
    uri = f"{server.endpoint}/m/weights"
    seen: list[Progress] = []
    had = client.ensure(uri, lease=("pod-1", 60.0), progress=seen.append)
    assert (had.snapshot.path / "weights").read_bytes() == b"w" * 100_000
    assert seen[-1].phase == "done"
    assert had.lease is not None
    [info] = [each for each in client.list() if each.digest == had.snapshot.digest]
    assert [lease.holder for lease in info.leases] == ["pod-1"]
    with pytest.raises(InUse, match="pod-1"):
        client.evict(uri)
    assert client.renew(had.lease.id, ttl_s=120.0).expires_at_s > had.lease.expires_at_s  # type: ignore[operator]
    shown = client.show(uri)
    assert [(file.path, file.size_bytes) for file in shown.manifest.files] == [("weights", 100_000)]
    assert shown.info == next(each for each in client.list() if each.digest == had.snapshot.digest)
    assert client.verify(uri).damages == ()
    assert client.residency(uri)[0].size_bytes == 100_000
    file = had.snapshot.path / "weights"
    away = node.root.parent / "away"
    file.rename(away)  # as an eviction does in the middle of the look
    with pytest.raises(NotCached, match="gone"):
        client.residency(uri)
    away.rename(file)
    assert (client.release(had.lease.id), client.release(had.lease.id)) == (True, False)
    pin = client.pin(uri, holder="me")
    assert (pin.kind, client.unpin(uri, holder="you"), client.unpin(uri)) == ("pin", 0, 1)
    with ModelCache(node.root) as direct:
        assert direct.find(uri) == client.show(uri).info
        usage = client.status().usage
        assert usage is not None
        assert direct.usage().content_bytes == usage.content_bytes
        assert client.status(brief=True).usage is None
    assert client.evict(uri).uris == (uri,)
    with pytest.raises(NotCached):
        client.show(uri)


@pytest.mark.parametrize(("uri", "error"), [("nothing://x", UnknownScheme), ("s3://", InvalidUri), ("{}/nothing", NotFound)])
def test_errors_are_the_library_s_own(
    client: AgentClient, server: FaultServer, tmp_path: Path, uri: str, error: type[ModelCacheError]
) -> None:
    asked = uri.format(server.endpoint)
    with ModelCache(config=Config.load(environ={}, root=tmp_path / "s", limits=NO_LIMITS)) as cache, pytest.raises(error) as direct:
        cache.ensure(asked)
    with pytest.raises(error) as told:
        client.ensure(asked)
    assert type(told.value) is type(direct.value)
    assert told.value.as_dict() == direct.value.as_dict()


def test_a_namespace_is_believed_on_the_driver_s_socket_alone(client: AgentClient, server: FaultServer, node: RunningAgent) -> None:
    uri = f"{server.endpoint}/m/weights"
    pod = Identity("team-a", "default", {})
    with pytest.raises(AccessDenied, match="driver's socket"):
        client.ensure(uri, identity=pod)
    with AgentClient(node.driver) as driver:
        with pytest.raises(AccessDenied, match="for somebody"):
            driver.ensure(uri)
        assert driver.ensure(uri, identity=pod).snapshot.digest == client.ensure(uri).snapshot.digest


def test_what_is_the_administrator_s_is_not_the_driver_s(client: AgentClient, server: FaultServer, node: RunningAgent) -> None:
    uri = f"{server.endpoint}/m/weights"
    with AgentClient(node.driver) as driver:
        digest = str(driver.ensure(uri, identity=Identity("team-a", "default", {})).snapshot.digest)
        refused: list[Callable[[], object]] = [
            lambda: driver.list(),
            lambda: driver.evict(digest),
            lambda: driver.pin(digest),
            lambda: driver.unpin(digest),
            lambda: driver.verify(),
            lambda: driver.prewarm([uri]),
            lambda: driver.set_rates(RateLimits()),
            lambda: driver.recent(),
            lambda: driver.drain(0.0),
            lambda: driver.show(uri),
            lambda: driver.lease(uri, holder="x", ttl_s=60.0),
        ]
        for ask in refused:
            with pytest.raises(AccessDenied, match="socket"):
                ask()
        lease = driver.lease(digest, holder="pod", ttl_s=60.0)
        assert driver.renew(lease.id, ttl_s=90.0).id == lease.id
        assert {each.holder for each in driver.show(digest).info.leases} == {"pod"}
        assert driver.release(lease.id)
        told = driver.status()
        assert (told.usage, list(told.moving), told.draining) == (None, [], False)
    assert client.status().usage is not None


def test_forty_clients_share_one_fetch(server: FaultServer, node: RunningAgent) -> None:
    server.put("/m/shared", b"s" * 300_000)

    def ask(_: int) -> str:
        with AgentClient(node.admin) as client:
            return str(client.ensure(f"{server.endpoint}/m/shared").snapshot.digest)

    with ThreadPoolExecutor(40) as threads:
        assert len(set(threads.map(ask, range(40)))) == 1
    fetched = [each for each in server.received if each.target == "/m/shared" and each.headers.get("range") == "bytes=0-299999"]
    assert len(fetched) == 1


def test_a_lease_has_an_end(client: AgentClient, server: FaultServer) -> None:
    uri = f"{server.endpoint}/m/weights"
    client.ensure(uri)
    for ttl_s in (0.0, -1.0, 1e9):
        with pytest.raises(BadConfig):
            client.lease(uri, holder="x", ttl_s=ttl_s)
    for ask in (lambda: client.lease(uri, holder="mount:/x", ttl_s=60.0), lambda: client.ensure(uri, lease=("mount:/x", 60.0))):
        with pytest.raises(BadConfig, match="finds mounted"):  # else it would be ended with the mount that isn't there
            ask()


@pytest.mark.parametrize("holder", ["cluster:one", "cluster:"])
def test_nobody_pins_in_the_cluster_s_name(
    client: AgentClient, server: FaultServer, node: RunningAgent, holder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the agent would end the pin, or give pods what it holds."""
    uri = f"{server.endpoint}/m/weights"
    had = client.ensure(uri)
    with ModelCache(node.root) as direct:
        for ask in (
            lambda: client.pin(uri, holder=holder),
            lambda: client.prewarm([uri], pin_for=holder),
            lambda: direct.pin(uri, holder=holder),
            lambda: direct.prewarm([uri], pin_for=holder),
        ):
            with pytest.raises(BadConfig, match="the node's agent pins"):
                ask()
        assert main(["pin", uri, "--holder", holder, "--agent", str(node.admin), "--root", str(node.root)]) == 2
        assert "the node's agent pins" in capsys.readouterr().err
        assert direct.find(uri).leases == ()
        assert direct.pin_for_cluster(str(had.snapshot.digest), key="one").holder == "cluster:one"
        assert client.unpin(uri, holder="cluster:one") == 1


def test_the_sockets_are_their_owner_s(node: RunningAgent) -> None:
    assert [path.stat().st_mode & 0o777 for path in (node.admin, node.driver)] == [0o600, 0o600]


def test_who_has_no_protocol_finds_it_at_the_socket(node: RunningAgent) -> None:
    with grpc.insecure_channel(f"unix:{node.admin}") as channel:
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"modelcache.agent.v1.Agent", "grpc.health.v1.Health"} <= set(services)


def test_a_second_agent_is_refused_and_told_of_the_first(node: RunningAgent, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "daemonset", "--root", str(node.root), "--socket", str(tmp_path / "s")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[2])
    assert ran.returncode == 1
    assert any(f"process {pid}" in ran.stderr for pid in node.process.pids())


def test_it_ends_in_order_and_leases_outlive_it(tmp_path: Path, server: FaultServer) -> None:
    uri = f"{server.endpoint}/m/weights"
    with agent(tmp_path) as first:
        with AgentClient(first.admin) as client:
            lease = client.ensure(uri, lease=("pod", 600.0)).lease
        first.end(signal.SIGTERM)
        assert not first.admin.exists()
        with AgentClient(first.admin) as client, pytest.raises(AgentUnreachable):
            client.status()
    with agent(tmp_path) as second, AgentClient(second.admin) as client:
        assert client.show(uri).info.leases == (lease,)
