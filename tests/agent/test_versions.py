"""An agent and those who are a version apart from it: clients, agents, stores."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from modelcache.agent.client import AgentClient
from modelcache.agent.failures import decoded, encoded, raised
from modelcache.agent.v1 import agent_pb2 as pb
from modelcache.agent.v1.agent_pb2_grpc import AgentServicer, add_AgentServicer_to_server
from modelcache.errors import AgentUnreachable, InUse, UnknownScheme
from modelcache.fetch.progress import Phase, Progress
from modelcache.refresh import Refresh
from modelcache.sources.throttled import RateLimits
from modelcache.store.root import format_bytes_of
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.audit import Moment, audit
from modelcache.testing.fault_server import FaultServer

KEPT = Path(__file__).parent / "kept"
SERVICE = pb.DESCRIPTOR.services_by_name["Agent"].full_name
CALL_S = 30.0
UNKNOWN_FIELD = bytes([0xFA, 0x3F, 3]) + b"new"
"""Number 1023, a text (protobuf's encoding guide: number << 3 | wire type, as a varint)."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with agent(tmp_path_factory.mktemp("v")) as running:
        yield running


@pytest.fixture
def uri() -> Iterator[str]:
    with FaultServer() as server:
        server.put("/m/weights", b"w" * 1000)
        yield f"{server.endpoint}/m/weights"


# -- a client of the version before -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def before() -> DescriptorPool:
    """The protocol as it was in the first version of the agent: `protoc --descriptor_set_out`."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString((KEPT / "agent-v1.binpb").read_bytes()).file:
        pool.Add(file)
    return pool


def shape(message: Descriptor) -> Mapping[str, object]:
    """What of a message is on the wire."""
    own = {
        f"{message.full_name}.{field.name}": (
            field.number,
            field.type,
            field.is_repeated,
            field.message_type.full_name if field.message_type else None,
        )
        for field in message.fields
    }
    return own | {name: told for nested in message.nested_types for name, told in shape(nested).items()}


def test_what_was_on_the_wire_still_means_the_same(before: DescriptorPool) -> None:
    then, now = before.FindFileByName("modelcache/agent/v1/agent.proto"), pb.DESCRIPTOR
    shapes = [
        {name: told for message in file.message_types_by_name.values() for name, told in shape(message).items()} for file in (then, now)
    ]
    assert shapes[0].items() <= shapes[1].items()
    for name, enum in then.enum_types_by_name.items():
        values = [{value.name: value.number for value in each.values} for each in (enum, now.enum_types_by_name[name])]
        assert values[0].items() <= values[1].items()
    calls = [
        {
            call.name: (call.input_type.full_name, call.output_type.full_name, call.client_streaming, call.server_streaming)
            for call in each.methods
        }
        for each in (then.services_by_name["Agent"], now.services_by_name["Agent"])
    ]
    assert calls[0].items() <= calls[1].items()


class ClientBefore:
    """Speaks the kept protocol, and knows nothing else."""

    def __init__(self, channel: grpc.Channel, pool: DescriptorPool) -> None:
        self._channel = channel
        self._pool = pool

    def __call__(self, name: str, /, **given: object) -> list[Any]:
        """The replies of a call, one or several."""
        method = self._pool.FindServiceByName(SERVICE).methods_by_name[name]
        request, reply = (GetMessageClass(each) for each in (method.input_type, method.output_type))
        make = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        call: Any = make(f"/{SERVICE}/{name}", request_serializer=request.SerializeToString, response_deserializer=reply.FromString)
        said = call(request(**given), timeout=CALL_S)
        return list(said) if method.server_streaming else [said]


def test_a_client_of_the_version_before_is_served(node: RunningAgent, before: DescriptorPool, uri: str) -> None:
    with grpc.insecure_channel(f"unix:{node.admin}") as channel:
        ask = ClientBefore(channel, before)
        replies = ask("Ensure", uri=uri, lease_holder="pod", lease_ttl_s=60.0)
        ensured = replies[-1].ensured
        assert (Path(ensured.path) / "weights").read_bytes() == b"w" * 1000
        [info] = [each for each in ask("List") if each.digest == ensured.digest]
        assert [(lease.holder, lease.id) for lease in info.leases] == [("pod", ensured.lease.id)]
        assert ask("Show", name=uri)[0].files[0].path == "weights"
        assert ask("Status")[0].usage.content_bytes >= 1000
        assert ask("Release", lease_id=ensured.lease.id)[0].released
        assert ask("Verify", name=uri)[-1].report.blobs == 1
        assert list(ask("Evict", name=uri)[0].uris) == [uri]


# -- a client of the version after --------------------------------------------------------------------------------------


def test_what_a_newer_client_adds_is_left_out_and_what_it_calls_is_refused_in_words(node: RunningAgent, uri: str) -> None:
    asked = pb.EnsureRequest(uri=uri).SerializeToString() + UNKNOWN_FIELD
    with grpc.insecure_channel(f"unix:{node.admin}") as channel:
        ensure: Any = channel.unary_stream(f"/{SERVICE}/Ensure", response_deserializer=pb.EnsureReply.FromString)
        assert [*ensure(asked, timeout=CALL_S)][-1].HasField("ensured")
        tomorrow: Any = channel.unary_unary(f"/{SERVICE}/Tomorrow")
        with pytest.raises(grpc.RpcError) as refused:
            tomorrow(b"", timeout=CALL_S)
    error = raised(refused.value, str(node.admin))
    assert (type(error), error.message, error.hint) == (
        AgentUnreachable,
        "the agent is of a version without this call",
        "upgrade the agent of this node",
    )


def test_what_the_agent_s_environment_lacks_is_said_to_be_the_agent_s() -> None:
    told = decoded(encoded(UnknownScheme("`s3://` needs botocore", hint="pip install 'modelcache[s3]'")))
    assert told.hint == "it is the node's agent that lacks it, or its image (`EXTRAS`): pip install 'modelcache[s3]'"


# -- agents of other versions -------------------------------------------------------------------------------------------


@contextmanager
def stand_in(directory: Path, servicer: AgentServicer) -> Iterator[AgentClient]:
    """A client of an agent that says what it is told to say."""
    server = grpc.server(ThreadPoolExecutor(2))
    add_AgentServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{directory / 'o.sock'}")
    server.start()
    try:
        with AgentClient(directory / "o.sock") as client:
            yield client
    finally:
        server.stop(None).wait(CALL_S)


class Older(AgentServicer):
    """Has `Status` alone, and of that the first fields."""

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802 - the protocol's name
        return pb.StatusReply(version="0.0.9", root="/store", started_at_s=1.0)


def test_what_an_older_agent_lacks_is_empty_and_what_it_can_t_do_is_told(tmp_path: Path) -> None:
    with stand_in(tmp_path, Older()) as client:  # type: ignore[abstract]  # that's the point
        status = client.status(brief=True)
        assert (status.version, status.usage, status.moving, status.denials, status.rates) == ("0.0.9", None, [], {}, RateLimits())
        calls: tuple[Callable[[], object], ...] = (
            lambda: client.set_rates(RateLimits(1)),
            lambda: client.ensure("https://host/x"),
            lambda: client.prewarm([]),
            client.list,
            client.verify,
        )
        for call in calls:
            with pytest.raises(AgentUnreachable, match="of a version without this call") as told:
                call()
            assert told.value.hint == "upgrade the agent of this node"


class Newer(AgentServicer):
    """Says more than today's."""

    def Ensure(self, request: pb.EnsureRequest, context: grpc.ServicerContext) -> Iterator[pb.EnsureReply]:  # noqa: N802 - the protocol's name
        yield pb.EnsureReply.FromString(UNKNOWN_FIELD)  # a third kind of reply
        yield pb.EnsureReply(
            progress=pb.Progress.FromString(pb.Progress(uri="u", phase="pondering", bytes_done=7).SerializeToString() + UNKNOWN_FIELD)
        )
        lease = pb.LeaseInfo(id="x-1", digest="sha256:" + "0" * 64, holder="pod", kind="vow")
        yield pb.EnsureReply(ensured=pb.Ensured(digest="sha256:" + "0" * 64, path="/nowhere", lease=lease))

    def Evict(self, request: pb.EvictRequest, context: grpc.ServicerContext) -> pb.EvictReply:  # noqa: N802 - the protocol's name
        told = pb.Error(code="under-a-spell", message="it is enchanted").SerializeToString()
        context.set_trailing_metadata((("modelcache-error-bin", told),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "it is enchanted")
        raise AssertionError("unreachable")


def test_what_a_newer_agent_says_is_taken_for_the_nearest_that_is_known(tmp_path: Path) -> None:
    with stand_in(tmp_path, Newer()) as client:  # type: ignore[abstract]
        looks: list[Progress] = []
        had = client.ensure("https://host/x", progress=looks.append)
        assert [(look.phase, look.bytes_done) for look in looks] == [(Phase.FETCHING, 7)]
        assert had.lease is not None
        assert (had.lease.holder, had.lease.kind) == ("pod", "lease")
        with pytest.raises(AgentUnreachable, match=r"doesn't know \(under-a-spell\): it is enchanted"):
            client.evict("https://host/x")


# -- a store of the first format ----------------------------------------------------------------------------------------

OLD = "http://127.0.0.1:34309/old"
"""Where the two models of the kept store came from: `weights`, pinned, and `tokenizer`, leased for fifty years."""


@pytest.fixture
def old_store(tmp_path: Path) -> Path:
    """As the first version of the agent left it, for whoever runs the tests."""
    root = tmp_path / "store"
    with tarfile.open(KEPT / "store-format-1.tar.xz") as kept:
        kept.extractall(root, filter="fully_trusted")
    file = root / "format"
    store_id = file.read_text().split()[-1]
    file.chmod(0o600)
    file.write_bytes(format_bytes_of(os.geteuid(), store_id))
    file.chmod(0o400)
    return root


def test_a_store_of_the_first_format_is_served_held_and_verified(old_store: Path, tmp_path: Path) -> None:
    assert audit(old_store, Moment.CRASHED) == []
    contents = {"weights": b"w" * (4 * 1024 * 1024 + 5), "tokenizer": b'{"old": true}'}
    with agent(tmp_path) as running, AgentClient(running.admin) as client:
        for name, content in contents.items():
            had = client.ensure(f"{OLD}/{name}", refresh=Refresh.NEVER)
            assert (had.snapshot.path / name).read_bytes() == content
            with pytest.raises(InUse):
                client.evict(f"{OLD}/{name}")
        held = {lease.holder: lease for info in client.list() for lease in info.leases}
        assert held.keys() == {"kept", "pod"}
        report = client.verify()
        assert (report.snapshots, report.blobs, report.damages) == (2, 2, ())
        assert client.release(held["pod"].id)
        assert client.unpin(f"{OLD}/weights") == 1
        for name in contents:
            assert client.evict(f"{OLD}/{name}").uris == (f"{OLD}/{name}",)
        assert client.list() == []
        assert client.drain(CALL_S) == 0
    assert audit(old_store, Moment.SETTLED) == []


def test_a_store_of_a_newer_format_is_refused_in_words(old_store: Path, tmp_path: Path) -> None:
    file = old_store / "format"
    file.chmod(0o600)
    file.write_bytes(file.read_bytes().replace(b"modelcache 1", b"modelcache 2"))
    command = [sys.executable, "-m", "daemonset", "--root", str(old_store), "--socket", str(tmp_path / "s")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[2])
    assert ran.returncode == 1
    assert "newer" in ran.stderr
    assert len(list((old_store / "blobs" / "sha256").glob("*/*"))) == 2  # nothing was touched
