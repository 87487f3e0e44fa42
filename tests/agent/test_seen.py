"""What of the agent is seen from outside."""

from __future__ import annotations

import re
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
from modelcache.errors import AgentDraining, NoSpace, NotFound
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.fault_server import Call, FaultServer
from tests.docs.documents import ROOT, between, rows


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
        server.put("/ahead/weights", b"a" * 1000)
        client.prewarm([f"{server.endpoint}/ahead/weights"])
        client.evict(f"{server.endpoint}/ahead/weights")
    found = samples(node)
    assert found["modelcache_ensures_total", "fetched,waiting"] == 1
    assert found["modelcache_ensures_total", "fetched,prewarm"] == 1
    assert found["modelcache_refusals_total", "not-found"] == 1
    for phase in ("resolving", "reserving", "fetching", "publishing"):
        assert found["modelcache_phase_seconds_count", phase] == 2 + (phase == "resolving")
    assert found["modelcache_ensures_total", "hit,waiting"] == 1
    assert found["modelcache_ensures_total", "not-found,waiting"] == 1
    assert found["modelcache_fetched_bytes_total", "waiting,http"] == 100_000
    assert found["modelcache_read_back_bytes_total", ""] == 100_000
    assert found["modelcache_evictions_total", "request"] == 1
    assert found["modelcache_leases", "lease"] == 1
    assert found["modelcache_store_content_bytes", ""] == 100_000
    assert found["modelcache_ensures_under_way", "waiting"] == 0
    for secret in ("secret-model", "pod-of-somebody", str(server.port)):
        assert secret not in get(node, "/metrics")


def test_what_was_evicted_for_room_and_who_got_none_is_counted(tmp_path: Path) -> None:
    with agent(tmp_path, {"MODELCACHE_MAX_BYTES": "5MiB"}) as node, FaultServer() as server, AgentClient(node.admin) as client:
        for name in ("a", "b", "c"):
            server.put(f"/m/{name}", name.encode() * (3 << 20))
        client.ensure(f"{server.endpoint}/m/a")
        client.ensure(f"{server.endpoint}/m/b", lease=("pod", 600.0))
        with pytest.raises(NoSpace):
            client.ensure(f"{server.endpoint}/m/c")
        found = samples(node)
        [evicted] = [entry for entry in client.recent() if entry.event == "evicted"]
    assert found["modelcache_evictions_total", "room"] == 1
    assert found["modelcache_evicted_bytes_total", "room"] >= 3 << 20
    assert found["modelcache_refusals_total", "no-space"] == found["modelcache_ensures_total", "no-space,waiting"] == 1
    assert evicted.model == f"{server.endpoint}/m/a"


def test_the_document_has_every_metric_with_its_labels(node: RunningAgent) -> None:
    with FaultServer() as server, AgentClient(node.admin) as client:
        server.put("/m", b"w" * 1000)
        client.ensure(f"{server.endpoint}/m")
        with pytest.raises(NotFound):
            client.ensure(f"{server.endpoint}/nothing")
    text = (ROOT / "docs/agent.md").read_text(encoding="utf-8")
    documented = {row[0].strip("`"): set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", row[1]))) for row in rows(between(text, "metrics"))}
    shown = get(node, "/metrics")
    names = {name for name in re.findall(r"^# TYPE (\S+)", shown, re.MULTILINE) if not name.endswith("_created")}
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(shown):
        for each in family.samples:
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels.setdefault(name, set()).update(each.labels.keys() - {"le"})

    assert names == documented.keys()
    assert {name: found for name, found in labels.items() if name in names} == {name: documented[name] for name in labels.keys() & names}


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
    def serving() -> bool:
        with grpc.insecure_channel(f"unix:{node.admin}") as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs know no calls
            status = health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10).status
        return bool(status == health_pb2.HealthCheckResponse.SERVING)

    assert serving()
    assert (get(node, "/healthz"), get(node, "/readyz")) == ("ok\n", "ok\n")
    with AgentClient(node.admin) as client:
        assert client.drain(5.0) == 0
        with pytest.raises(AgentDraining):
            client.ensure("http://127.0.0.1:1/x")
        assert client.status().draining
    assert not serving()
    assert get(node, "/healthz") == "ok\n"
    with pytest.raises(HTTPError, match="503"):
        get(node, "/readyz")
    with pytest.raises(HTTPError, match="404"):
        get(node, "/models")
