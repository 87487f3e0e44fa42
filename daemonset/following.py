"""Follows this node's LocalModelNode: a list, then a watch from there, then again, whatever the API server does."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from daemonset.backoff import Backoff
from modelcache.errors import Cancelled, ModelCacheError, NotFound, ProtocolViolation
from modelcache.k8s.api import ApiServer, Object, VersionGone
from modelcache.k8s.names import API, NODES
from modelcache.patience import Cancellation

logger = logging.getLogger(__name__)
WATCH_S = 300.0
"""After which the API server is asked to end a watch, so that nodes spread over its replicas; as client-go's reflector, not all at once."""
AGAIN = Backoff(1.0, 60.0)


class Follower:
    """A context manager: it follows from its beginning to its end."""

    def __init__(self, api: ApiServer, node: str, seen: Callable[[Object | None], None], ending: Cancellation) -> None:
        """
        Args:
            seen: told the object each time it may be another one; None: the API server says that there is none. Never called while it
                can't be asked.
        """
        self._api = api
        self._selector = {"fieldSelector": f"metadata.name={node}"}
        self._seen = seen
        self._ending = ending
        self._version: str | None = None
        self._failures = 0
        self._thread = threading.Thread(target=self._work, name="agent follower", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.cancel()
        self._thread.join()

    def _work(self) -> None:
        try:
            while True:
                try:
                    if self._version is None:
                        self._list()
                    if not self._watch():
                        self._pause(None)
                except Cancelled:
                    raise
                except VersionGone:
                    logger.info("the watch's version is gone: listing again")
                    self._version = None
                    self._pause(None)  # not every node lists at once
                except ModelCacheError as error:
                    self._version = None if isinstance(error, NotFound) else self._version
                    self._pause(error)
        except Cancelled:
            logger.debug("follower ended")

    def _pause(self, error: ModelCacheError | None) -> None:
        """Longer after each failure in a row: since the last event of a watch, however that watch ended."""
        self._failures += 1
        wait_s = AGAIN.after(self._failures, None if error is None else error.retry_after_s)
        if error is not None:
            said = "the node's object can't be followed, again in %.0f s; what is here stays: %s"
            logger.warning(said, wait_s, error, extra={"error": error})
        self._ending.wait(wait_s)

    def _list(self) -> None:
        """Raises what `ApiServer.get` raises; NotFound: the resource isn't served, which says nothing about the object."""
        found = self._api.get(f"{API}/{NODES}", self._ending, self._selector)
        items, told = found.get("items") or [], found.get("metadata")
        version = told.get("resourceVersion") if isinstance(told, dict) else None
        if not isinstance(version, str) or not isinstance(items, list) or not all(map(_is_object, items)):
            raise ProtocolViolation("that is no list of the API server's", address=f"GET {API}/{NODES}")
        self._seen(items[0] if items else None)
        self._version = version

    def _watch(self) -> bool:
        """Until the server ends it. Whether anything came."""
        seconds = int(random.uniform(WATCH_S, 2 * WATCH_S))
        query = {**self._selector, "resourceVersion": str(self._version), "timeoutSeconds": str(seconds)}
        came = False
        for event in self._api.watch(f"{API}/{NODES}", query, self._ending):
            came, self._failures = True, 0
            if event.kind in ("ADDED", "MODIFIED"):
                self._seen(event.object)
            elif event.kind == "DELETED":
                self._seen(None)
            self._version = event.version
        return came


def _is_object(told: object) -> bool:
    return isinstance(told, dict) and isinstance(told.get("metadata"), dict)
