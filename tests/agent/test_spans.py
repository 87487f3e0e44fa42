"""OpenTelemetry spans, sent to a real receiver on loopback by a real agent; and what they say, in memory."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from daemonset.spans import NO_SPANS, OtelSpans
from modelcache.agent.client import AgentClient
from modelcache.agent.v1 import agent_pb2 as pb
from modelcache.agent.v1.agent_pb2_grpc import AgentStub
from modelcache.errors import BadConfig
from modelcache.testing.agents import agent
from modelcache.testing.fault_server import Call, FaultServer, Reply

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector() -> Iterator[FaultServer]:
    """An OTLP receiver over HTTP."""
    with FaultServer() as server:
        server.fail("/v1/traces", lambda call: call.reply(Reply(200, {"Content-Type": "application/x-protobuf"}, b"")))
        yield server


def spans_of(collector: FaultServer) -> list[Any]:
    found = []
    for each in collector.received:
        body = gzip.decompress(each.body) if each.headers.get("content-encoding") == "gzip" else each.body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            found += [span for scope in resource.scope_spans for span in scope.spans]
    return found


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_a_question_is_a_span_below_its_callers_and_phases_are_below_it(tmp_path: Path, collector: FaultServer) -> None:
    options = ["--otlp", f"{collector.endpoint}/v1/traces"]
    with agent(tmp_path, options=options) as node, FaultServer() as server, grpc.insecure_channel(f"unix:{node.admin}") as channel:
        server.put("/m/weights", b"w" * 60_000)
        uri = f"http://user:hunter2@127.0.0.1:{server.port}/m/weights"
        stub = AgentStub(channel)
        list(stub.Ensure(pb.EnsureRequest(uri=uri), timeout=30, metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),)))
        list(stub.Ensure(pb.EnsureRequest(uri=uri), timeout=30, metadata=(("traceparent", "nonsense"),)))
        with suppress(grpc.RpcError):
            list(stub.Ensure(pb.EnsureRequest(uri=uri.replace("/m/", "/n/")), timeout=30))
        with AgentClient(node.admin) as client:
            server.put("/m/ahead", b"a" * 60_000)
            assert client.prewarm([f"{server.endpoint}/m/{name}" for name in ("ahead", "none")]).failed
            told = {each.event: each for each in client.recent() if each.fields.get("priority") == "prewarm"}
        node.end()
    spans = spans_of(collector)
    asked = {attributes(span)["modelcache.outcome"]: span for span in spans if span.name == "ensure"}

    assert set(asked) == {"fetched", "hit", "not-found"}
    assert (asked["fetched"].trace_id.hex(), asked["fetched"].parent_span_id.hex()) == (TRACE, PARENT)
    assert asked["hit"].parent_span_id == b""
    assert asked["hit"].trace_id.hex() != TRACE
    said = attributes(asked["fetched"])
    assert (said["modelcache.bytes_fetched"], said["modelcache.priority"]) == (60_000, "waiting")
    assert said["modelcache.model"] == f"http://127.0.0.1:{server.port}/m/weights"
    phases = [span for span in spans if span.parent_span_id == asked["fetched"].span_id]
    assert sorted(span.name for span in phases) == ["fetching", "publishing", "reserving", "resolving"]
    assert {span.trace_id.hex() for span in phases} == {TRACE}
    assert all(asked["fetched"].start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano for span in phases)
    assert (asked["not-found"].status.code, asked["not-found"].status.message) == (2, "not-found")
    assert "hunter2" not in str(spans)

    # of a list each model is told by itself, and one span is that of all
    [ahead] = [span for span in spans if span.name == "prewarm"]
    phases = [span for span in spans if span.parent_span_id == ahead.span_id]
    assert {span.name for span in phases} == {"resolving", "reserving", "fetching", "publishing"}
    assert {attributes(span)["modelcache.model"] for span in phases} >= {f"{server.endpoint}/m/ahead"}
    assert {event: each.model for event, each in told.items()} == {
        "fetched": f"{server.endpoint}/m/ahead",
        "failed": f"{server.endpoint}/m/none",
    }
    assert told["fetched"].request == told["failed"].request
    assert told["fetched"].request


def test_without_a_collector_the_agent_works_and_ends(tmp_path: Path) -> None:
    def silent(call: Call) -> None:
        call.hang_up()

    with FaultServer() as dead, FaultServer() as server:
        dead.fail("/v1/traces", silent)
        server.put("/m", b"w" * 1000)
        with agent(tmp_path, options=["--otlp", f"{dead.endpoint}/v1/traces", "--log", "text"]) as node, AgentClient(node.admin) as client:
            client.ensure(f"{server.endpoint}/m")
            node.end()
            assert "the agent has ended" in (tmp_path / "agent.log").read_text()


def test_what_is_not_wanted_is_not_imported() -> None:
    code = "import sys, daemonset.__main__; sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
    with NO_SPANS.span("ensure", None) as span:
        span.tell({})
    with pytest.raises(BadConfig, match="OTLP"):
        OtelSpans.to("localhost:4317")
