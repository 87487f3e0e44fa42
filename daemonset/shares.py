"""What the node's caches give to pods: a cluster cache to all of them, a namespace's cache to those of that namespace."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from modelcache.abc.grants import Isolation
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.ensure import Ensured
from modelcache.errors import BadInput, NotCached
from modelcache.fetch.progress import hit_progress
from modelcache.k8s.node import WantedModel
from modelcache.patience import Cancellation
from modelcache.permission import Caller
from modelcache.refresh import Refresh
from modelcache.sources.any_fsspec.callers import leads_elsewhere
from modelcache.uri import StorageUri, parse_uri

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Share:
    """A model that a cache gives.

    Attributes:
        wanted: what the cache says; None: the API server has not told yet what is wanted, and it is pinned in the cache's name.
        digest: of the snapshot that is here, and pinned; None: it is not here yet.
        size_bytes, file_count: of that snapshot.
        stale: its origin could not be asked for a newer version.
    """

    uri: str
    wanted: WantedModel | None
    digest: str | None
    size_bytes: int = 0
    file_count: int = 0
    stale: bool = False


class Giver(Protocol):
    """Who knows what caches the node has."""

    def share(self, uri: str, namespace: str | None) -> Share | None:
        """What a cache of this namespace (None: a cluster cache) gives of a URI in canonical form."""
        ...

    def caller_of(self, model: WantedModel, cancel: Cancellation) -> Caller | None:
        """Who fetches it; None: the node itself. Raises ModelCacheError."""
        ...


class Shares:
    """Nothing until somebody gives. Thread-safe."""

    def __init__(self, cache: ModelCache) -> None:
        self._cache = cache
        self._giver: Giver | None = None

    @contextmanager
    def given_by(self, giver: Giver) -> Iterator[None]:
        self._giver = giver
        try:
            yield
        finally:
            self._giver = None

    def of(self, uri: str, caller: Caller) -> Share | None:
        """What caches give a caller; None: what the caller gets, it has to prove.

        Who brings a credential in the URI, or an endpoint in the secret, asks for what is there, and not for what a cache has.
        """
        giver = self._giver
        if giver is None:
            return None
        try:
            parsed, secrets = parse_uri(uri)
        except BadInput:
            return None  # it is told where it is parsed next
        if secrets or _another_place(parsed, caller.config, self._cache.config):
            return None
        own = giver.share(str(parsed), caller.namespace)
        if own is not None or self._cache.config.trust.isolation is Isolation.NAMESPACE:
            return own
        return giver.share(str(parsed), None)

    def here(self, share: Share, refresh: Refresh) -> Ensured | None:
        """What is given, if it is here. Asks no origin and no API server."""
        started_s = time.monotonic()
        if share.digest is None or refresh is Refresh.ALWAYS:
            return None
        snapshot = self._cache.used(share.digest)
        if snapshot is None:
            return None
        progress = hit_progress(share.uri, share.size_bytes, share.file_count, started_s)
        return Ensured(replace(snapshot, stale=share.stale), progress)

    def caller_of(self, share: Share, cancel: Cancellation) -> Caller | None:
        """In whose name it is fetched; None: the node's own.

        Raises:
            NotCached: nobody gives it any more.
            What `Giver.caller_of` raises.
        """
        giver = self._giver
        if giver is None or share.wanted is None:
            raise NotCached(f"`{share.uri}` is not here", address=share.uri)
        return giver.caller_of(share.wanted, cancel)


def given_by(models: Mapping[str, WantedModel]) -> dict[tuple[str, str | None], str]:
    """Keys by canonical URI and namespace; of two caches of one namespace and URI the first."""
    found: dict[tuple[str, str | None], str] = {}
    for key, model in models.items():
        try:
            uri, secrets = parse_uri(model.uri)
        except BadInput:
            continue  # told where it is fetched
        if not secrets:  # what a presigned URL opens, it opens to who has it
            found.setdefault((str(uri), model.namespace), key)
    return found


def _another_place(uri: StorageUri, own: Config, node: Config) -> bool:
    """Whether a secret names another endpoint than the node's."""
    if own.fsspec.callers is not None and leads_elsewhere(uri, own.fsspec.callers, node.fsspec):
        return True
    places = {"s3": (own.s3.endpoint, node.s3.endpoint), "hf": (own.hf.endpoint, node.hf.endpoint)}
    ours, nodes = places.get(uri.scheme, (None, None))
    return ours != nodes
