"""The agent: a store, two sockets, and an orderly end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from daemonset import sockets
from daemonset.announcing import Announce, Announcer, silently
from daemonset.calls import Calls, Waiters
from daemonset.cluster import Member, Membership
from daemonset.door import DriversDoor
from daemonset.metrics import Metrics
from daemonset.mounts import Mounts
from daemonset.ownership import owned, why_unusable
from daemonset.reviews import Admit, everybody, nobody
from daemonset.scrubbing import Scrubber, ScrubBudget
from daemonset.service import Access, AgentService, Seen
from daemonset.shares import Shares
from daemonset.spans import NO_SPANS, Spans
from daemonset.views import Life, Views
from daemonset.volumes import GRACE_S, VolumeKeeper
from daemonset.watermarks import Kubelet, WatermarkKeeper
from daemonset.web import Web, pages
from modelcache.agent.log import LogEntry
from modelcache.agent.v1 import agent_pb2
from modelcache.agent.v1.agent_pb2_grpc import add_AgentServicer_to_server
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.errors import StoreFault
from modelcache.k8s.api import ApiServer
from modelcache.units import MIB

logger = logging.getLogger(__name__)
WAITERS = 384
"""Calls that may last (`Ensure`, `Prewarm`, `Verify`), at once on one socket: more than pods fit on a node. The others are refused."""
SHORT_CALLS = 64
"""The rest, health included, at once on one socket; more of them wait for their turn."""
OPTIONS = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * MIB))
"""A list of 100,000 URIs to prewarm is one request."""
SERVICE = agent_pb2.DESCRIPTOR.services_by_name["Agent"].full_name


@dataclass(frozen=True, slots=True)
class Sockets:
    """Where the agent answers. `driver`: None without a CSI driver."""

    admin: Path
    driver: Path | None = None


@dataclass(frozen=True, slots=True)
class Volumes:
    """How leases of volumes are kept.

    Attributes:
        pods: kubelet's directory of pods; None: there is no kubelet.
        grace_s: how long a lease is kept that has neither a mount nor a target directory.
    """

    pods: Path | None = None
    grace_s: float = GRACE_S


@dataclass(frozen=True, slots=True)
class Watching:
    """Who looks at the agent.

    Attributes:
        recent: the last lines of its log.
        spans: makes the place that spans go to; closed with the agent.
        admit: who may see what names models, over HTTP.
        http_socket: a unix socket where its owner may, over HTTP; None: there is none.
    """

    recent: Callable[[], Sequence[LogEntry]] = tuple
    spans: Callable[[], Spans] = lambda: NO_SPANS
    admit: Admit = nobody
    http_socket: Path | None = None


class Agent:
    """A running agent. A context manager: it serves from its beginning to its end."""

    def __init__(
        self,
        config: Config,
        sockets: Sockets,
        *,
        grace_s: float,
        http: tuple[str, int] | None = None,
        volumes: Volumes = Volumes(),
        scrub: ScrubBudget = ScrubBudget(),  # noqa: B008 - it is frozen
        watching: Watching = Watching(),
        membership: Membership | None = None,
        kubelet: Kubelet = Kubelet(),  # noqa: B008 - it is frozen
    ) -> None:
        """
        Args:
            membership: None: it follows no cluster.
            http: address and port of health and metrics; None: they are not served.
            grace_s: how long `stop` waits for calls that are under way; they are cancelled then, their chunks are kept.
        """
        self._config = config
        self._sockets = sockets
        self._grace_s = grace_s
        self._http = http
        self._volumes = volumes
        self._scrub = scrub
        self._watching = watching
        self._membership = membership
        self._kubelet = kubelet
        self._calls = Calls()
        self._stack = ExitStack()
        self._health = health.HealthServicer()
        self._servers: list[grpc.Server] = []
        self._ended = threading.Event()
        self._serving = False

    def __enter__(self) -> Self:
        """Raises StoreError: the store can't be used, or has an agent; BadConfig."""
        with ExitStack() as stack:
            mounts = Mounts(self._config.root, self._volumes.pods)
            cache = stack.enter_context(ModelCache(config=self._config, elsewhere=mounts.held))
            stack.enter_context(owned(self._config.root))
            stack.enter_context(VolumeKeeper(cache, mounts, grace_s=self._volumes.grace_s))
            metrics = Metrics(cache, stack.enter_context(closing(self._watching.spans())))
            self._calls.refused = metrics.refused
            announce = self._announcer(stack)
            watermarks = stack.enter_context(WatermarkKeeper(cache, metrics, self._kubelet, self._volumes.pods, self._calls.ending))
            seen, shares = Seen(metrics, self._watching.recent, announce, lambda: watermarks.now), Shares(cache)
            self._serve_web(stack, metrics, cache)
            stack.callback(self._end_servers)
            self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)  # before a socket answers
            stack.enter_context(self._calls.ending.on_cancel(self._health.enter_graceful_shutdown))
            self._serving = True
            for path, access in self._accesses():
                door: list[grpc.ServerInterceptor] = [DriversDoor(self._calls)] if access.speaks_for_callers else []
                self._servers.append(self._serve(path, AgentService(cache, self._calls, Waiters(WAITERS), access, seen, shares), door))
                stack.callback(sockets.remove, path)
            stack.enter_context(Scrubber(cache, metrics, self._scrub, self._calls.ending, announce))
            if self._membership is not None:
                stack.enter_context(Member(cache, metrics, self._membership, shares, self._calls.ending))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Take no new work, wait for what is under way, and end. Idempotent."""
        if self._ended.is_set():
            return
        left = self._calls.drain(self._grace_s)
        if left:
            logger.warning("%d calls are cancelled: they did not end within %g s", left, self._grace_s)
        self._stack.close()
        self._ended.set()
        logger.info("the agent has ended", extra={"event": "ended"})

    def _why_not_ready(self) -> str | None:
        if not self._serving:
            return "starting"
        return "draining" if self._calls.draining else why_unusable(self._config.root)

    def _announcer(self, stack: ExitStack) -> Announce:
        membership = self._membership
        if membership is None:
            return silently
        server = stack.enter_context(closing(ApiServer(membership.place)))
        return stack.enter_context(Announcer(server, membership.node))

    def _serve_web(self, stack: ExitStack, metrics: Metrics, cache: ModelCache) -> None:
        watching = self._watching
        life = Life(time.time(), lambda: self._calls.draining, watching.recent)
        served = pages(metrics.registry, self._why_not_ready, Views(cache, life))
        if self._http is not None:
            stack.enter_context(Web(self._http, served, watching.admit))
        if watching.http_socket is not None:
            stack.enter_context(Web(watching.http_socket, served, everybody))

    def _accesses(self) -> list[tuple[Path, Access]]:
        found = [(self._sockets.admin, Access(speaks_for_callers=False))]
        if self._sockets.driver is not None:
            found.append((self._sockets.driver, Access(speaks_for_callers=True)))
        return found

    def _serve(self, path: Path, service: AgentService, door: list[grpc.ServerInterceptor]) -> grpc.Server:
        sockets.prepare(path)
        threads = ThreadPoolExecutor(WAITERS + SHORT_CALLS, thread_name_prefix="agent")
        server = grpc.server(threads, interceptors=door, options=OPTIONS)
        add_AgentServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        with sockets.private(path) as place:
            try:
                server.add_insecure_port(f"unix:{place}")
            except RuntimeError as error:
                raise StoreFault(f"the agent's socket can't be made ({error})", address=str(path)) from None
        server.start()
        return server

    def _end_servers(self) -> None:
        for event in [server.stop(grace=0.5) for server in self._servers]:
            event.wait(self._grace_s)
        self._servers.clear()
