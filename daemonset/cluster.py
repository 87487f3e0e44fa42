"""The agent as a part of a cluster: what follows, keeps and reports, put together."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from daemonset.credentials import Credentials
from daemonset.following import Follower
from daemonset.keeping import Keeper
from daemonset.metrics import Metrics
from daemonset.reporting import Reporter
from daemonset.shares import Shares
from modelcache.cache import ModelCache
from modelcache.k8s.api import WATCH_SILENCE_S, ApiPlace, ApiServer, Object
from modelcache.k8s.names import expect_label, expect_subdomain
from modelcache.k8s.node import told_models, wanted_models
from modelcache.patience import Cancellation


@dataclass(frozen=True, slots=True)
class Membership:
    """Of which cluster an agent is a part, and as which node.

    Attributes:
        secrets_namespace: where the secrets of cluster caches are; None: they have none.
        silence_s: without one byte on a watch, after which it is begun anew.

    Raises:
        BadConfig: a name that none of these can have.
    """

    node: str
    place: ApiPlace
    secrets_namespace: str | None = None
    silence_s: float = WATCH_SILENCE_S

    def __post_init__(self) -> None:
        expect_subdomain("a node", self.node)
        if self.secrets_namespace is not None:
            expect_label("a namespace", self.secrets_namespace)


class Member:
    """A context manager: the node is made to match its LocalModelNode from its beginning to its end."""

    def __init__(self, cache: ModelCache, metrics: Metrics, membership: Membership, shares: Shares, ending: Cancellation) -> None:
        """
        Args:
            shares: where it is told what caches give to pods.
            ending: asked for when the agent takes no new work: what nobody waits for ends then.
        """
        self._cache = cache
        self._metrics = metrics
        self._membership = membership
        self._shares = shares
        self._ending = ending
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        membership = self._membership
        with ExitStack() as stack:
            api = stack.enter_context(closing(ApiServer(membership.place, silence_s=membership.silence_s)))
            credentials = Credentials(api, self._cache.config, cluster_namespace=membership.secrets_namespace)
            who, caller_of = membership.secrets_namespace, credentials.caller_of
            keeper = Keeper(self._cache, self._metrics, caller_of, lambda: reporter.changed(), secrets_namespace=who)
            reporter = Reporter(api, membership.node, keeper.reports, self._ending)

            def seen(node: Object | None) -> None:
                if node is None:
                    keeper.want({}, {}, evict=False)  # not a wish to have nothing: its room is given back when it is needed
                else:
                    keeper.want(wanted_models(node), told_models(node))
                reporter.seen(node)

            stack.enter_context(keeper)
            stack.enter_context(self._shares.given_by(keeper))
            stack.enter_context(self._ending.on_cancel(keeper.end))
            stack.enter_context(reporter)
            stack.enter_context(Follower(api, membership.node, seen, self._ending))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.cancel()
        self._stack.close()
