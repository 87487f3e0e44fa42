"""What of the agent is seen from outside."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from daemonset.server import SERVICE
from modelcache.agent.client import AgentClient
from modelcache.errors import AgentDraining, NotFound
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.fault_server import Call, FaultServer


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningAgent]:
    with agent(tmp_path) as running:
        yield running


def get(node: RunningAgent, path: str) -> str:
    with urllib.request.urlopen(node.http + path, timeout=10) as answer:
        return str(answer.read().decode())


def samples(node: RunningAgent) -> dict[tuple[str, str], float]:
    """Value by name and labels."""
    families = text_string_to_metric_families(get(node, "/metrics"))
    return {(each.name, ",".join(each.labels.values())): each.value for family in families for each in family.samples}


def test_metrics_count_what_happened_and_name_no_model(node: RunningAgent) -> None:
    with FaultServer() as server, AgentClient(node.admin) as client:
        server.put("/secret-model/weights", b"w" * 100_000)
        uri = f"{server.endpoint}/secret-model/weights"
        client.ensure(uri, lease=("pod-of-somebody", 60.0))
        client.ensure(uri)
        with pytest.raises(NotFound):
            client.ensure(f"{server.endpoint}/nothing")
        client.verify(uri)
    found = samples(node)
    assert found["modelcache_ensures_total", "fetched,waiting"] == 1
    assert found["modelcache_ensures_total", "hit,waiting"] == 1
    assert found["modelcache_ensures_total", "not-found,waiting"] == 1
    assert found["modelcache_fetched_bytes_total", "waiting,http"] == 100_000
    assert found["modelcache_read_back_bytes_total", ""] == 100_000
    assert found["modelcache_leases", "lease"] == 1
    assert found["modelcache_store_content_bytes", ""] == 100_000
    assert found["modelcache_ensures_under_way", "waiting"] == 0
    for secret in ("secret-model", "pod-of-somebody", str(server.port)):
        assert secret not in get(node, "/metrics")


def test_bytes_are_counted_once_whoever_waits_for_them(node: RunningAgent) -> None:
    together = threading.Event()

    def when_all_wait(call: Call) -> None:
        while not together.is_set() and not call.ended.wait(0.05):
            if samples(node).get(("modelcache_ensures_under_way", "waiting")) == 6:
                together.set()
        call.reply(call.proper)

    with FaultServer() as server, AgentClient(node.admin) as client, ThreadPoolExecutor(6) as threads:
        server.put("/m/shared", b"s" * 300_000)
        server.fail("/m/shared", when_all_wait)
        server.put("/m/later", b"l" * 100_000)
        list(threads.map(client.ensure, [f"{server.endpoint}/m/shared"] * 6))
        client.prewarm([f"{server.endpoint}/m/later"])
    found = samples(node)
    assert found["modelcache_fetched_bytes_total", "waiting,http"] == 300_000
    assert found["modelcache_fetched_bytes_total", "prewarm,http"] == 100_000


def test_an_agent_that_drains_is_alive_and_not_ready(node: RunningAgent) -> None:
    with grpc.insecure_channel(f"unix:{node.admin}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs know no calls
        assert health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
    assert (get(node, "/healthz"), get(node, "/readyz")) == ("ok\n", "ok\n")
    with AgentClient(node.admin) as client:
        assert client.drain(5.0) == 0
        with pytest.raises(AgentDraining):
            client.ensure("http://127.0.0.1:1/x")
        assert client.status().draining
    assert get(node, "/healthz") == "ok\n"
    with pytest.raises(HTTPError, match="503"):
        get(node, "/readyz")
    with pytest.raises(HTTPError, match="404"):
        get(node, "/models")
