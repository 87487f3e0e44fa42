"""A node's agent, asked: the calls of `modelcache.agent.v1` in the library's own types."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from modelcache.errors import NotInstalled

try:
    import grpc
    import grpc.experimental
except ModuleNotFoundError as error:
    raise NotInstalled.needed_for("an agent takes", error, "modelcache[agent]") from None

from modelcache.abc.snapshot import Ref, Snapshot
from modelcache.abc.store import Evicted, Lease, SnapshotInfo, Usage, VerifyReport, new_lease_id
from modelcache.agent import wire
from modelcache.agent.failures import raised
from modelcache.agent.log import LogEntry
from modelcache.agent.silence import Silence
from modelcache.agent.v1 import agent_pb2 as pb
from modelcache.agent.v1.agent_pb2_grpc import AgentStub
from modelcache.agent.watermarks import Watermarks
from modelcache.errors import AgentUnreachable, Cancelled, ModelCacheError
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Progress
from modelcache.manifest import Manifest, ManifestFile
from modelcache.patience import Cancellation
from modelcache.prewarm import DEFAULT_JOBS, Ended, ManyProgress, PrewarmReport
from modelcache.refresh import Refresh
from modelcache.sources.throttled import RateLimits

T = TypeVar("T")
CALL_TIMEOUT_S = 60.0
"""Of a call that answers once. The slowest, `Status` and `List` of 100,000 blobs, take 2 s."""
SILENCE_S = 30.0
"""Of a call that tells its progress, which an agent does every second, and be it the same."""

AT_ONCE_S = 2.0
"""Of the question whether a model is here: an agent that takes longer is asked for it as for one that has to come."""
GIVE_BACK_S = 5.0
"""To release a lease that nobody will have heard of."""

OPTIONS = (("grpc.max_receive_message_length", -1), (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1))
"""Who waits for a call reads its replies itself, without a thread between: a quarter less CPU for a hit (`bench.agent`)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """For whom a call is made, on the CSI driver's socket.

    Attributes:
        credential: names of variables, as KServe's secrets and the SDKs have them, with their values.
    """

    namespace: str
    service_account: str
    credential: Mapping[str, str]

    @property
    def message(self) -> pb.Caller:
        return pb.Caller(namespace=self.namespace, service_account=self.service_account, credential=self.credential)

    def __repr__(self) -> str:
        return f"Identity({self.namespace}/{self.service_account}, {len(self.credential)} values)"


@dataclass(frozen=True, slots=True)
class Had:
    """What an ensure came to. `lease`: if one was asked for."""

    snapshot: Snapshot
    lease: Lease | None


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """What an agent says of itself. `usage`: None in a brief one. `watermarks`: of kubelet's thresholds; None: an older agent."""

    version: str
    root: Path
    started_at_s: float
    draining: bool
    usage: Usage | None
    moving: Sequence[Progress]
    denials: Mapping[str, int]
    rates: RateLimits
    watermarks: Watermarks | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """One snapshot with its files and refs. `verified_at_s`: when all of it was last read back and found right."""

    info: SnapshotInfo
    manifest: Manifest
    refs: Sequence[Ref]
    verified_at_s: float | None


@dataclass(frozen=True, slots=True)
class Residence:
    """How much of a file is in memory, 0 to 1; None: the kernel doesn't tell."""

    path: str
    size_bytes: int
    resident_share: float | None


class AgentClient:
    """One agent, at its unix socket. A context manager; safe for many threads.

    Every call raises what the library's own would, of the same class and with the same fields, and besides AgentUnreachable (nobody
    answers) and AgentDraining.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=OPTIONS)
        self._stub = AgentStub(self._channel)
        self._silence = Silence(SILENCE_S)
        self._given_back: set[grpc.Future[pb.ReleaseReply]] = set()
        self._tells_cached = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    # -- models -----------------------------------------------------------------------------------------------------

    def ensure(
        self,
        uri: str,
        *,
        refresh: Refresh = Refresh.AUTO,
        priority: Priority = Priority.WAITING,
        reads_next: bool = False,
        identity: Identity | None = None,
        lease: tuple[str, float] | None = None,
        progress: Callable[[Progress], None] | None = None,
        cancel: Cancellation | None = None,
    ) -> Had:
        """`ModelCache.ensure` in the agent.

        Args:
            identity: on the CSI driver's socket, whose rights count; the administrator's has none.
            lease: holder and seconds: the snapshot is held before the call ends.
        """
        request = pb.EnsureRequest(
            uri=uri,
            priority=wire.PRIORITY_NUMBERS[priority],
            refresh=wire.REFRESH_NUMBERS[refresh],
            reads_next=reads_next,
            lease_holder=lease[0] if lease else "",
            lease_ttl_s=lease[1] if lease else 0.0,
            lease_id=new_lease_id() if lease else "",
        )
        if identity is not None:
            request.caller.CopyFrom(identity.message)
        with self._unless_unheard(request):
            here = None if refresh is Refresh.ALWAYS else self._cached(request, progress, cancel)
            return here or self._brought(request, progress, cancel)

    def prewarm(
        self,
        uris: Sequence[str],
        *,
        jobs: int = DEFAULT_JOBS,
        refresh: Refresh = Refresh.AUTO,
        pin_for: str | None = None,
        progress: ManyProgress | None = None,
        ended: Ended | None = None,
        cancel: Cancellation | None = None,
    ) -> PrewarmReport:
        """As `ModelCache.prewarm`; `ended` may be told the same again, and an agent of a version before doesn't."""
        request = pb.PrewarmRequest(uris=uris, jobs=jobs, refresh=wire.REFRESH_NUMBERS[refresh], pin_for=pin_for)
        for reply in self._told(self._stub.Prewarm(request), cancel):
            if reply.HasField("report"):
                return wire.prewarm_of(reply.report)
            if progress is not None and reply.HasField("look"):
                progress(reply.look.number, wire.progress_of(reply.look.progress))
            if ended is not None and reply.HasField("ended"):
                ended(reply.ended.number, wire.outcome_of(reply.ended.outcome))
        raise AgentUnreachable("the agent ended the call without a result", address=str(self._socket))

    def list(self) -> Sequence[SnapshotInfo]:
        """As `ModelCache.list`."""
        return [wire.info_of(each) for each in self._told(self._stub.List(pb.ListRequest()), None)]

    def show(self, name: str) -> Shown:
        """As `ModelCache.find`, `manifest`, `refs` and `verified_at_s`."""
        reply = self._call(lambda: self._stub.Show(pb.ShowRequest(name=name), timeout=CALL_TIMEOUT_S))
        files = tuple(ManifestFile(each.path, each.size_bytes, wire.digest_of(each.digest)) for each in reply.files)
        refs = [wire.ref_of(each) for each in reply.refs]
        at_s = reply.verified_at_s if reply.HasField("verified_at_s") else None
        return Shown(wire.info_of(reply.snapshot), Manifest(files, refs[0].key.compartment if refs else ""), refs, at_s)

    def evict(self, name: str, *, dry_run: bool = False) -> Evicted:
        """As `ModelCache.evict`."""
        return wire.evicted_of(self._call(lambda: self._stub.Evict(pb.EvictRequest(name=name, dry_run=dry_run), timeout=CALL_TIMEOUT_S)))

    def verify(
        self, name: str | None = None, *, progress: Callable[[int, int], None] | None = None, cancel: Cancellation | None = None
    ) -> VerifyReport:
        """As `ModelCache.verify`."""
        for reply in self._told(self._stub.Verify(pb.VerifyRequest(name=name)), cancel):
            if reply.HasField("report"):
                return wire.report_of(reply.report)
            if progress is not None and reply.HasField("progress"):
                progress(reply.progress.bytes_done, reply.progress.bytes_total)
        raise AgentUnreachable("the agent ended the call without a result", address=str(self._socket))

    def residency(self, name: str, path: str = "") -> Sequence[Residence]:
        """How much of a snapshot's files (or of one) is in memory."""
        reply = self._call(lambda: self._stub.Residency(pb.ResidencyRequest(name=name, path=path), timeout=CALL_TIMEOUT_S))
        return [
            Residence(each.path, each.size_bytes, each.resident_share if each.HasField("resident_share") else None) for each in reply.files
        ]

    # -- holds ------------------------------------------------------------------------------------------------------

    def lease(self, name: str, *, holder: str, ttl_s: float) -> Lease:
        """As `ModelCache.lease`."""
        request = pb.LeaseRequest(name=name, holder=holder, ttl_s=ttl_s, lease_id=new_lease_id())
        with self._unless_unheard(request):
            return wire.lease_of(self._call(lambda: self._stub.Lease(request, timeout=CALL_TIMEOUT_S)).lease)

    def renew(self, lease_id: str, *, ttl_s: float) -> Lease:
        """As `ModelCache.renew`."""
        request = pb.RenewRequest(lease_id=lease_id, ttl_s=ttl_s)
        return wire.lease_of(self._call(lambda: self._stub.Renew(request, timeout=CALL_TIMEOUT_S)).lease)

    def release(self, lease_id: str) -> bool:
        """As `ModelCache.release`."""
        return self._call(lambda: self._stub.Release(pb.ReleaseRequest(lease_id=lease_id), timeout=CALL_TIMEOUT_S)).released

    def pin(self, name: str, *, holder: str = "user") -> Lease:
        """As `ModelCache.pin`."""
        return wire.lease_of(self._call(lambda: self._stub.Pin(pb.PinRequest(name=name, holder=holder), timeout=CALL_TIMEOUT_S)).lease)

    def unpin(self, name: str, *, holder: str | None = None) -> int:
        """As `ModelCache.unpin`."""
        return self._call(lambda: self._stub.Unpin(pb.UnpinRequest(name=name, holder=holder), timeout=CALL_TIMEOUT_S)).ended

    # -- the agent itself -------------------------------------------------------------------------------------------

    def status(self, *, brief: bool = False, timeout_s: float = CALL_TIMEOUT_S) -> AgentStatus:
        """What it keeps, what moves, and whom it turned away.

        Args:
            brief: without `usage`, which takes longer the more is kept.
        """
        reply = self._call(lambda: self._stub.Status(pb.StatusRequest(brief=brief), timeout=timeout_s))
        moving = [wire.progress_of(each.progress) for each in reply.moving]
        usage = wire.usage_of(reply.usage) if reply.HasField("usage") else None
        root, rates = Path(reply.root), wire.rates_of(reply.rates)
        marks = wire.watermarks_of(reply.watermarks) if reply.HasField("watermarks") else None
        return AgentStatus(reply.version, root, reply.started_at_s, reply.draining, usage, moving, dict(reply.denials), rates, marks)

    def set_rates(self, rates: RateLimits) -> RateLimits:
        """Bound what the agent takes from origins, from now on until it ends, in what is under way, too; the bounds that were in
        force. Raises BadConfig, AccessDenied: not on the administrator's socket."""
        return wire.rates_of(self._call(lambda: self._stub.SetRates(wire.rates_message(rates), timeout=CALL_TIMEOUT_S)).before)

    def recent(self) -> Sequence[LogEntry]:
        """The last lines of its log, the oldest first. Raises AccessDenied: not on the administrator's socket."""
        return [wire.entry_of(each) for each in self._told(self._stub.Recent(pb.RecentRequest()), None)]

    def drain(self, timeout_s: float) -> int:
        """Have it take no new work and wait for what is under way; how many calls the time was not enough for."""
        return self._call(lambda: self._stub.Drain(pb.DrainRequest(timeout_s=timeout_s), timeout=timeout_s + CALL_TIMEOUT_S)).left

    # -- inside -----------------------------------------------------------------------------------------------------

    def _cached(self, request: pb.EnsureRequest, progress: Callable[[Progress], None] | None, cancel: Cancellation | None) -> Had | None:
        """What is here already; None: ask for it, with the request as it is then."""
        cancel = cancel or Cancellation()
        cancel.check()
        if not self._tells_cached:
            return None
        try:
            reply = self._stub.Cached(request, timeout=AT_ONCE_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._tells_cached = False  # an agent of a version before this call
            elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._give_back(request)
            else:
                raise raised(error, str(self._socket)) from None
            return None
        if not reply.HasField("ensured"):
            return None
        if progress is not None:
            progress(wire.progress_of(reply.progress))
        cancel.check()
        return _had(reply.ensured)

    def _brought(self, request: pb.EnsureRequest, progress: Callable[[Progress], None] | None, cancel: Cancellation | None) -> Had:
        """What may have to come first."""
        had = None
        with closing(self._told(self._stub.Ensure(request), cancel)) as replies:
            for reply in replies:  # to its end: who leaves before that has no lease
                if reply.HasField("ensured"):
                    had = _had(reply.ensured)
                elif progress is not None and reply.HasField("progress"):
                    progress(wire.progress_of(reply.progress))
        if had is None:
            raise AgentUnreachable("the agent ended the call without a result", address=str(self._socket))
        return had

    def _give_back(self, request: pb.EnsureRequest) -> None:
        """The lease of a question that is given up, if it comes to one; the next has a lease of its own."""
        if request.lease_id:
            release = self._stub.Release.future(pb.ReleaseRequest(lease_id=request.lease_id), timeout=GIVE_BACK_S)
            self._given_back.add(release)  # a call that nobody keeps is cancelled
            release.add_done_callback(self._given_back.discard)
            request.lease_id = new_lease_id()

    @contextmanager
    def _unless_unheard(self, request: pb.EnsureRequest | pb.LeaseRequest) -> Iterator[None]:
        """In this block its lease is asked for, if its id isn't empty: who leaves it without the answer has no lease."""
        try:
            yield
        except BaseException as error:
            answered = isinstance(error, ModelCacheError) and not isinstance(error, Cancelled | AgentUnreachable)
            if request.lease_id and not answered:
                with suppress(grpc.RpcError, ValueError):  # the agent or the channel has gone: the lease ends at its time
                    self._stub.Release(pb.ReleaseRequest(lease_id=request.lease_id), timeout=GIVE_BACK_S)
            raise

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except grpc.RpcError as error:
            raise raised(error, str(self._socket)) from None

    def _told(self, replies: grpc._CallIterator[T], cancel: Cancellation | None) -> Generator[T, None, None]:
        """The replies of a call, each at most SILENCE_S after the one before was taken. Raises AgentUnreachable, what the agent tells."""
        with self._silence.watched(replies.cancel) as call, (cancel or Cancellation()).on_cancel(partial(_end, replies.cancel)):
            try:
                for reply in replies:
                    with call.unheard():
                        yield reply
            except grpc.RpcError as error:
                if cancel is not None:
                    cancel.check()
                if call.silent:
                    said = f"the agent said nothing for {self._silence.patience_s:g} s"
                    raise AgentUnreachable(said, address=str(self._socket)) from None
                raise raised(error, str(self._socket)) from None
            finally:
                replies.cancel()


def _had(found: pb.Ensured) -> Had:
    return Had(wire.snapshot_of(found), wire.lease_of(found.lease) if found.HasField("lease") else None)


def _end(call: Callable[[], object]) -> None:
    call()
