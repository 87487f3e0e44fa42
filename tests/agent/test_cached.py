"""What is here, asked for in one question: who may not hear the answer holds nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from daemonset.calls import Calls, Waiters
from daemonset.metrics import Metrics
from daemonset.service import Access, AgentService, Seen
from modelcache.agent import client as client_module
from modelcache.agent.v1 import agent_pb2 as pb
from modelcache.agent.v1.agent_pb2_grpc import AgentServicer
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.fetch.progress import Progress
from modelcache.testing.polling import until
from modelcache.testing.store_fixtures import NO_LIMITS
from tests.agent.test_versions import stand_in


class Slow(AgentServicer):
    """Answers the first question when it is too late."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.second: list[str] = []
        self.released: list[str] = []
        self.late = threading.Event()

    def Cached(self, request: pb.EnsureRequest, context: grpc.ServicerContext) -> pb.CachedReply:  # noqa: N802 - the protocol's name
        self.first.append(request.lease_id)
        self.late.wait(60.0)
        return pb.CachedReply()

    def Ensure(self, request: pb.EnsureRequest, context: grpc.ServicerContext) -> Iterator[pb.EnsureReply]:  # noqa: N802 - the protocol's name
        self.second.append(request.lease_id)
        yield pb.EnsureReply(progress=pb.Progress(uri=request.uri, phase="fetching"))
        yield pb.EnsureReply(ensured=pb.Ensured(digest="sha256:" + "0" * 64, path="/nowhere"))

    def Release(self, request: pb.ReleaseRequest, context: grpc.ServicerContext) -> pb.ReleaseReply:  # noqa: N802 - the protocol's name
        self.released.append(request.lease_id)
        return pb.ReleaseReply(released=True)


def test_an_agent_that_is_slow_to_say_what_is_here_is_asked_as_for_what_has_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "AT_ONCE_S", 0.1)
    servicer, looks = Slow(), list[Progress]()  # type: ignore[abstract]  # no other call is made
    with stand_in(tmp_path, servicer) as client:
        had = client.ensure("https://host/x", lease=("pod", 60.0), progress=looks.append)
        servicer.late.set()
        assert (had.snapshot.path, [look.phase for look in looks]) == (Path("/nowhere"), ["fetching"])
        until(lambda: len(servicer.released) == 1, "the first question's lease to be given back")
    assert servicer.first in ([], servicer.released)  # on a busy machine it was given up before it was heard
    assert servicer.second != servicer.released


@pytest.mark.parametrize("there", [True, False])
def test_a_client_that_has_gone_holds_nothing(tmp_path: Path, there: bool) -> None:
    class Context:
        def invocation_metadata(self) -> tuple[()]:
            return ()

        def is_active(self) -> bool:
            return there

    (tmp_path / "weights").write_bytes(b"w")
    with ModelCache(config=Config(root=tmp_path / "root", limits=NO_LIMITS)) as cache:
        cache.ensure(str(tmp_path / "weights"))
        service = AgentService(cache, Calls(), Waiters(1), Access(speaks_for_callers=False), Seen(Metrics(cache)))
        request = pb.EnsureRequest(uri=str(tmp_path / "weights"), lease_holder="pod", lease_ttl_s=60.0)
        reply = service.Cached(request, cast(Any, Context()))
        assert [lease.id for lease in cache.leases()] == ([reply.ensured.lease.id] if there else [])
        assert reply.progress.hit
