"""`modelcache.agent.v1.Agent`, served from one `ModelCache`."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial

import grpc

from daemonset import bounds
from daemonset.announcing import Announce, silently
from daemonset.calls import Calls, Waiters
from daemonset.events import tell_damaged, tell_evicted
from daemonset.metrics import Metrics
from daemonset.own_right import brought_by_node
from daemonset.shares import Share, Shares
from daemonset.telling import at_once, both, told
from daemonset.tenants import caller_of
from modelcache import __version__
from modelcache.abc.snapshot import Snapshot
from modelcache.abc.store import Lease
from modelcache.agent import wire
from modelcache.agent.log import LogEntry
from modelcache.agent.v1 import agent_pb2 as pb
from modelcache.agent.v1.agent_pb2_grpc import AgentServicer
from modelcache.agent.watermarks import Watermarks
from modelcache.cache import ModelCache
from modelcache.errors import AccessDenied, BadConfig, Cancelled, ModelCacheError, NoSpace, NotCached, NotFound
from modelcache.fetch.progress import Phase, Progress
from modelcache.loader.residency import resident_share
from modelcache.patience import Cancellation
from modelcache.permission import Caller
from modelcache.prewarm import DEFAULT_JOBS, PrewarmOutcome
from modelcache.ranges import ByteRange
from modelcache.refresh import Refresh
from modelcache.telemetry import subject
from modelcache.uri import redact_url

logger = logging.getLogger(__name__)
_DIGEST = re.compile(r"(?:sha256:)?[0-9a-f]{64}")
LEASE_TRIES = 5
"""A snapshot may be evicted between its ensure and its lease; then it is ensured again."""


@dataclass(frozen=True, slots=True)
class Access:
    """What the peers of one socket may do.

    Attributes:
        speaks_for_callers: it is the CSI driver's: calls are made for callers, whose namespace is believed (`daemonset.door`).
    """

    speaks_for_callers: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """What is seen of the agent. `recent`: the last lines of its log. `announce`: of what its cluster should know. `watermarks`: in force;
    None: nobody knows."""

    metrics: Metrics
    recent: Callable[[], Sequence[LogEntry]] = tuple
    announce: Announce = silently
    watermarks: Callable[[], Watermarks | None] = lambda: None


class AgentService(AgentServicer):
    """Answers on one socket."""

    def __init__(self, cache: ModelCache, calls: Calls, waiters: Waiters, access: Access, seen: Seen, shares: Shares | None = None) -> None:
        """`shares`: what callers get without a proof of their own; None: nothing."""
        self._cache = cache
        self._shares = shares or Shares(cache)
        self._metrics = seen.metrics
        self._recent = seen.recent
        self._announce = seen.announce
        self._watermarks = seen.watermarks
        self._calls = calls
        self._waiters = waiters
        self._access = access
        self._started_at_s = time.time()

    # -- models -----------------------------------------------------------------------------------------------------

    def Ensure(self, request: pb.EnsureRequest, context: grpc.ServicerContext) -> Iterator[pb.EnsureReply]:
        with self._calls.under_way(context, begins_work=True), self._waiters.one(request.caller.namespace):
            caller, share = self._asked(request)
            held: list[str] = []
            here = self._here(request, caller, share)

            def run(tell: Callable[[Progress], None], cancel: Cancellation) -> pb.Ensured:
                naming = self._cache.naming_holders() if caller is None else nullcontext()  # tenants don't learn of each other
                with self._metrics.ensuring(request.uri, wire.priority_of(request.priority), caller) as counted, naming:
                    found = self._ensured(request, caller, share, both(counted.look, tell), cancel)
                if found.HasField("lease"):
                    held.append(found.lease.id)
                return found

            if here is not None and here[1].HasField("lease"):
                held.append(here[1].lease.id)
            try:
                with closing(told(run, context, _phase) if here is None else at_once(here)) as said:
                    for what in said:
                        if isinstance(what, Progress):
                            yield pb.EnsureReply(progress=wire.progress_message(what))
                            continue
                        yield pb.EnsureReply(ensured=what)
                        if context.is_active():  # it was sent: gRPC asks for no more before that
                            held.clear()
            finally:
                for lease_id in held:  # nobody was told of it
                    self._cache.release(lease_id)

    def Cached(self, request: pb.EnsureRequest, context: grpc.ServicerContext) -> pb.CachedReply:
        with self._calls.under_way(context, begins_work=True):
            here = self._here(request, *self._asked(request))
            if here is None:
                return pb.CachedReply()
            progress, found = here
            if found.HasField("lease") and not context.is_active():  # nobody will be told of it
                self._cache.release(found.lease.id)
            return pb.CachedReply(ensured=found, progress=wire.progress_message(progress))
        raise AssertionError("unreachable")

    def _asked(self, request: pb.EnsureRequest) -> tuple[Caller | None, Share | None]:
        """For whom, and what caches give them of it. Raises AccessDenied, BadConfig."""
        caller = self._caller(request)
        if request.lease_holder:
            bounds.expect_lease(request.lease_holder, request.lease_ttl_s)
        return caller, None if caller is None else self._shares.of(request.uri, caller)

    def _here(self, request: pb.EnsureRequest, caller: Caller | None, share: Share | None) -> tuple[Progress, pb.Ensured] | None:
        """A hit, from the call's own thread: it waits for nothing that a heartbeat would have to bridge."""
        with self._metrics.ensuring(request.uri, wire.priority_of(request.priority), caller) as counted:
            refresh = wire.refresh_of(request.refresh)
            had = None if share is None else self._shares.here(share, refresh)
            if had is None and (share is None or refresh is Refresh.NEVER):
                had = self._cache.cached(request.uri, refresh=refresh, caller=caller)
            found = None if had is None else self._leased(request, had.snapshot)
            if had is None or found is None:
                counted.leave_out()
                return None
            counted.look(had.progress)
        return had.progress, found

    def _ensured(
        self,
        request: pb.EnsureRequest,
        caller: Caller | None,
        share: Share | None,
        tell: Callable[[Progress], None],
        cancel: Cancellation,
    ) -> pb.Ensured:
        ask = partial(
            self._cache.ensure,
            request.uri,
            refresh=wire.refresh_of(request.refresh),
            priority=wire.priority_of(request.priority),
            reads_next=request.reads_next,
            cancel=cancel,
        )
        for _ in range(LEASE_TRIES):
            snapshot = None if share is None else self._in_caches_name(ask, share, tell, cancel)
            found = self._leased(request, snapshot or ask(caller=caller, progress=tell))
            if found is not None:
                return found
        raise NotCached(f"`{redact_url(request.uri)}` was evicted each time before it could be held", hint="make room: `modelcache df`")

    def _in_caches_name(
        self, ask: Callable[..., Snapshot], share: Share, tell: Callable[[Progress], None], cancel: Cancellation
    ) -> Snapshot | None:
        """As the cache fetches it; None: it can't, for reasons that its status tells, and that are none of a pod's."""
        try:
            caller = self._shares.caller_of(share, cancel)
            if caller is None:
                return brought_by_node(self._cache, share.uri, ask, tell, cancel)
            return ask(caller=caller, progress=tell)
        except (Cancelled, NoSpace):
            raise
        except ModelCacheError as error:
            logger.info("a cache's model is asked for by the pod's own right, for the cache's fails: %s", error, extra={"error": error})
            return None

    def _leased(self, request: pb.EnsureRequest, snapshot: Snapshot) -> pb.Ensured | None:
        """With the lease that was asked for; None: the snapshot is gone already."""
        found = pb.Ensured(digest=str(snapshot.digest), path=str(snapshot.path), stale=snapshot.stale)
        if not request.lease_holder:
            return found
        try:
            named = request.lease_id or None
            lease = self._cache.lease(str(snapshot.digest), holder=request.lease_holder, ttl_s=request.lease_ttl_s, lease_id=named)
        except NotCached:
            return None
        found.lease.CopyFrom(wire.lease_message(lease))
        return found

    def _named(self, name: str) -> str:
        """Raises AccessDenied: a URI by itself is the owner's, and not for who speaks for others."""
        if self._access.speaks_for_callers and not _DIGEST.fullmatch(name):
            raise AccessDenied("on the driver's socket a snapshot is named by its digest", hint="as `Ensure` said it")
        return name

    def _caller(self, request: pb.EnsureRequest) -> Caller | None:
        """Raises AccessDenied: this socket doesn't speak for callers, or has to; BadConfig: a credential that can't be used."""
        if not request.HasField("caller"):
            if self._access.speaks_for_callers:
                hint = "name the pod's namespace and service account"
                raise AccessDenied("calls on the driver's socket are made for somebody", hint=hint)
            return None
        if not self._access.speaks_for_callers:
            hint = "leave the caller out: this is the administrator's"
            raise AccessDenied("a namespace is believed on the driver's socket alone", hint=hint)
        told = request.caller
        if not told.namespace or not told.service_account:
            raise BadConfig("a caller has a namespace and a service account", got=f"{told.namespace}/{told.service_account}")
        return caller_of(told.namespace, told.service_account, told.credential, self._cache.config)

    def Prewarm(self, request: pb.PrewarmRequest, context: grpc.ServicerContext) -> Iterator[pb.PrewarmReply]:
        with self._calls.under_way(context, begins_work=True), self._waiters.one():

            def run(tell: Callable[[tuple[int, Progress | PrewarmOutcome] | None], None], cancel: Cancellation) -> pb.PrewarmReport:
                def ended(number: int, outcome: PrewarmOutcome) -> None:
                    self._metrics.prewarmed(outcome)
                    tell((number, outcome))

                tell(None)  # while all of them are looked up nothing else says that this lives
                with self._cache.naming_holders(), self._metrics.spans.span("prewarm", subject().trace):
                    report = self._cache.prewarm(
                        request.uris,
                        jobs=request.jobs or DEFAULT_JOBS,
                        refresh=wire.refresh_of(request.refresh),
                        pin_for=request.pin_for if request.HasField("pin_for") else None,
                        progress=lambda number, look: tell((number, look)),
                        ended=ended,
                        cancel=cancel,
                    )
                return wire.prewarm_message(report)

            for what in told(run, context, lambda told: told and (told[0], _phase(told[1]))):
                if what is None:
                    yield pb.PrewarmReply()
                elif isinstance(what, tuple):
                    yield wire.prewarmed_message(*what)
                else:
                    yield pb.PrewarmReply(report=what)

    def List(self, request: pb.ListRequest, context: grpc.ServicerContext) -> Iterator[pb.SnapshotInfo]:
        with self._calls.under_way(context, begins_work=False):
            yield from map(wire.info_message, self._cache.list())

    def Show(self, request: pb.ShowRequest, context: grpc.ServicerContext) -> pb.ShowReply:
        with self._calls.under_way(context, begins_work=False):
            info = self._cache.find(self._named(request.name))
            digest = str(info.digest)
            files = (
                pb.FileInfo(path=each.path, size_bytes=each.size_bytes, digest=str(each.sha256))
                for each in self._cache.manifest(digest).files
            )
            return pb.ShowReply(
                snapshot=wire.info_message(info),
                files=files,
                verified_at_s=self._cache.verified_at_s(digest),
                refs=map(wire.ref_message, self._cache.refs(digest)),
            )
        raise AssertionError("unreachable")

    def Evict(self, request: pb.EvictRequest, context: grpc.ServicerContext) -> pb.EvictReply:
        with self._calls.under_way(context, begins_work=True):
            evicted = self._cache.evict(request.name, dry_run=request.dry_run)
            if not request.dry_run:
                self._metrics.evicted(evicted.freed_bytes)
                tell_evicted(evicted)
            return pb.EvictReply(digest=str(evicted.digest), uris=evicted.uris, freed_bytes=evicted.freed_bytes)
        raise AssertionError("unreachable")

    def Verify(self, request: pb.VerifyRequest, context: grpc.ServicerContext) -> Iterator[pb.VerifyReply]:
        with self._calls.under_way(context, begins_work=True), self._waiters.one():
            name = request.name if request.HasField("name") else None

            def run(tell: Callable[[tuple[int, int] | None], None], cancel: Cancellation) -> pb.VerifyReport:
                tell(None)  # it lives, while it looks what there is to read
                report = self._cache.verify(name, progress=lambda done, total: tell((done, total)), cancel=cancel)
                self._metrics.verified(report.bytes_read, len(report.damages))
                for damage in report.damages:
                    tell_damaged(damage, self._announce)
                return wire.report_message(report)

            for what in told(run, context):
                if what is None:
                    yield pb.VerifyReply()
                elif isinstance(what, tuple):
                    yield pb.VerifyReply(progress=pb.VerifyReply.Progress(bytes_done=what[0], bytes_total=what[1]))
                else:
                    yield pb.VerifyReply(report=what)

    def Residency(self, request: pb.ResidencyRequest, context: grpc.ServicerContext) -> pb.ResidencyReply:
        with self._calls.under_way(context, begins_work=False):
            info = self._cache.find(self._named(request.name))
            files = [each for each in self._cache.manifest(str(info.digest)).files if request.path in ("", each.path)]
            if not files:
                raise NotFound(f"the snapshot has no file `{request.path}`", address=request.name)
            shares = ((each, _resident(f"{info.path}/{each.path}", each.size_bytes)) for each in files)
            told = (pb.ResidencyReply.File(path=each.path, size_bytes=each.size_bytes, resident_share=share) for each, share in shares)
            return pb.ResidencyReply(files=told)
        raise AssertionError("unreachable")

    # -- holds ------------------------------------------------------------------------------------------------------

    def Lease(self, request: pb.LeaseRequest, context: grpc.ServicerContext) -> pb.LeaseReply:
        with self._calls.under_way(context, begins_work=False):
            bounds.expect_lease(request.holder, request.ttl_s)
            named = request.lease_id or None
            return _reply(self._cache.lease(self._named(request.name), holder=request.holder, ttl_s=request.ttl_s, lease_id=named))
        raise AssertionError("unreachable")

    def Renew(self, request: pb.RenewRequest, context: grpc.ServicerContext) -> pb.LeaseReply:
        with self._calls.under_way(context, begins_work=False):
            bounds.expect_ttl(request.ttl_s)
            return _reply(self._cache.renew(request.lease_id, ttl_s=request.ttl_s))
        raise AssertionError("unreachable")

    def Release(self, request: pb.ReleaseRequest, context: grpc.ServicerContext) -> pb.ReleaseReply:
        with self._calls.under_way(context, begins_work=False):
            return pb.ReleaseReply(released=self._cache.release(request.lease_id))
        raise AssertionError("unreachable")

    def Pin(self, request: pb.PinRequest, context: grpc.ServicerContext) -> pb.LeaseReply:
        with self._calls.under_way(context, begins_work=False):
            return _reply(self._cache.pin(request.name, holder=request.holder or "user"))
        raise AssertionError("unreachable")

    def Unpin(self, request: pb.UnpinRequest, context: grpc.ServicerContext) -> pb.UnpinReply:
        with self._calls.under_way(context, begins_work=False):
            holder = request.holder if request.HasField("holder") else None
            return pb.UnpinReply(ended=self._cache.unpin(request.name, holder=holder))
        raise AssertionError("unreachable")

    # -- the agent itself -------------------------------------------------------------------------------------------

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:
        with self._calls.under_way(context, begins_work=False):
            others = not self._access.speaks_for_callers  # what the store has of whom is the administrator's to know
            return pb.StatusReply(
                version=__version__,
                root=str(self._cache.config.root),
                started_at_s=self._started_at_s,
                draining=self._calls.draining,
                usage=wire.usage_message(self._cache.usage()) if others and not request.brief else None,
                moving=(pb.Moving(progress=wire.progress_message(each)) for each in (self._cache.moving() if others else ())),
                denials=self._cache.denials.by_code,
                rates=wire.rates_message(self._cache.rates.limits),
                watermarks=wire.watermarks_message(self._watermarks()),
            )
        raise AssertionError("unreachable")

    def SetRates(self, request: pb.Rates, context: grpc.ServicerContext) -> pb.SetRatesReply:
        with self._calls.under_way(context, begins_work=False):
            rates, before = wire.rates_of(request), self._cache.rates.limits
            bounds.expect_rates(rates)
            self._cache.rates.change(rates)
            return pb.SetRatesReply(before=wire.rates_message(before))
        raise AssertionError("unreachable")

    def Recent(self, request: pb.RecentRequest, context: grpc.ServicerContext) -> Iterator[pb.LogEntry]:
        with self._calls.under_way(context, begins_work=False):
            yield from map(wire.entry_message, self._recent())

    def Drain(self, request: pb.DrainRequest, context: grpc.ServicerContext) -> pb.DrainReply:
        with self._calls.under_way(context, begins_work=False, awaited=False):
            bounds.expect_drain(request.timeout_s)
            return pb.DrainReply(left=self._calls.drain(request.timeout_s))
        raise AssertionError("unreachable")


def _phase(told: object) -> Phase | None:
    """A client that reads slowly hears the newest of each."""
    return told.phase if isinstance(told, Progress) else None


def _reply(lease: Lease) -> pb.LeaseReply:
    return pb.LeaseReply(lease=wire.lease_message(lease))


def _resident(path: str, size_bytes: int) -> float | None:
    if size_bytes == 0:
        return 1.0
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:  # not held: it may be evicted while it is looked at
        raise NotCached("a file of the snapshot is gone: it is evicted meanwhile", address=path, hint="ensure it again") from error
    try:
        return resident_share(fd, ByteRange(0, size_bytes))
    finally:
        os.close(fd)
