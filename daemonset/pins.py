"""What an agent has pinned in its cluster's name: which pin is which cache's, and of what URI its bytes are."""

from __future__ import annotations

from collections.abc import Iterable

from modelcache.abc.grants import Isolation
from modelcache.abc.snapshot import RefHead
from modelcache.abc.store import CLUSTERS, Lease, LeaseKind, SnapshotInfo
from modelcache.cache import ModelCache
from modelcache.errors import NotCached
from modelcache.registry import origins_of
from modelcache.uri import parse_uri


class Pins:
    """Safe for many threads."""

    def __init__(self, cache: ModelCache, secrets_namespace: str | None = None) -> None:
        """`secrets_namespace`: in whose name a cluster cache with a credential is fetched."""
        self._cache = cache
        self._secrets_namespace = secrets_namespace

    def all(self) -> list[Lease]:
        return [lease for lease in self._cache.leases() if lease.kind is LeaseKind.PIN and lease.holder.startswith(CLUSTERS)]

    def of(self, key: str) -> list[Lease]:
        """Those of one cache, older versions among them."""
        return [pin for pin in self.all() if pin.holder == f"{CLUSTERS}{key}"]

    def first(self, pins: Iterable[Lease], uri: str) -> tuple[SnapshotInfo, RefHead] | None:
        """As `what`, of the first of which there is something."""
        return next((found for pin in pins if (found := self.what(pin, uri)) is not None), None)

    def what(self, pin: Lease, uri: str) -> tuple[SnapshotInfo, RefHead] | None:
        """The snapshot, and why it is what the pin's cache has of a URI in canonical form; None: it is gone, or is no such thing.

        Equal bytes are one snapshot, and anybody can serve them under any name at an endpoint of their own. So only that name counts which
        the node's own settings lead to, or a credential of the cache's namespace: its proof is remembered as a grant.
        """
        try:
            info = self._cache.find(str(pin.manifest))
        except NotCached:
            return None
        named = [ref for ref in info.refs if ref.key.uri == uri and self._is_in_part_of(pin, ref)]
        if not named:
            return None
        who = namespace_of(pin) or self._secrets_namespace
        found = next((ref for ref in named if who is not None and self._cache.granted(who, ref.key, pin.manifest)), None)
        if found is None:
            own = origins_of(self._cache.config, parse_uri(uri))
            found = next((ref for ref in named if ref.key.origin in own), None)
        return None if found is None else (info, found)

    def _is_in_part_of(self, pin: Lease, ref: RefHead) -> bool:
        """Of namespaces that are kept apart, each has what its own calls brought."""
        apart, namespace = self._cache.config.trust.isolation is Isolation.NAMESPACE, namespace_of(pin)
        return not apart or namespace is None or ref.key.compartment == namespace


def namespace_of(pin: Lease) -> str | None:
    """Of the cache whose pin it is; None: a cluster cache's."""
    namespace, slash, _ = pin.holder.removeprefix(CLUSTERS).partition("/")
    return namespace if slash else None
