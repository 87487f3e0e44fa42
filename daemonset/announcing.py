"""Kubernetes Events of what a scrub finds and does, on the node's LocalModelNode: few, and late rather than in the way."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol, Self

from modelcache.errors import AccessDenied, Cancelled, ModelCacheError, NotFound, SourceChanged
from modelcache.k8s.names import AGENT, API, GROUP, NODES, VERSION
from modelcache.patience import Cancellation

logger = logging.getLogger(__name__)
NAMESPACE = "default"
"""Of Events about objects that have none, as kubelet's."""
BURST, REFILL_S = 15, 60.0
"""So many Events at once, of five contents that are damaged, kept aside and repaired, and then one in so long: a disk that dies damages
thousands of files, and etcd is everybody's."""
WAITING = 64
TRIES = 3
AGAIN_S = 5.0
MAX_CHARACTERS = 1000
"""The API server refuses notes over 1 KiB (events.k8s.io, `note`)."""
ENDING_S = 3.0
"""What is left is sent for so long when the agent ends."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What happened. No model's name is in it: more people read Events than may know what is cached.

    Attributes:
        reason: one word in CamelCase.
        warning: somebody should look.
    """

    reason: str
    message: str
    warning: bool = False


Announce = Callable[[Announcement], None]
"""From any thread, and quick."""


def silently(what: Announcement) -> None:
    """Without a cluster."""


class Poster(Protocol):
    """Of an API server, what this needs. Raises ModelCacheError."""

    def get(self, path: str, cancel: Cancellation) -> dict[str, Any]: ...

    def post(self, path: str, body: dict[str, Any], cancel: Cancellation) -> dict[str, Any]: ...


class Announcer:
    """A context manager: announces from its beginning to its end. Thread-safe; calls return at once, whatever the API server does."""

    def __init__(self, server: Poster, node: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._node = node
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Announcement, int, float]] = deque()
        self._left_out = 0
        self._allowed, self._allowed_at_s = float(BURST), clock()
        self._ending = False
        self._cancel = Cancellation()
        self._thread = threading.Thread(target=self._work, name="agent events", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(ENDING_S)
        self._cancel.cancel()
        self._thread.join()

    def __call__(self, what: Announcement) -> None:
        """Announce it, unless there were too many just before: then the next that may be says how many."""
        with self._changed:
            now_s = self._clock()
            self._allowed = min(float(BURST), self._allowed + (now_s - self._allowed_at_s) / REFILL_S)
            self._allowed_at_s = now_s
            if self._allowed < 1 or len(self._waiting) >= WAITING:
                self._left_out += 1
                return
            self._allowed -= 1
            self._waiting.append((what, self._left_out, time.time()))
            self._left_out = 0
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ending:
                    self._changed.wait()
                if not self._waiting:
                    return
                what, left_out, at_s = self._waiting.popleft()
            try:
                self._post(what, left_out, at_s)
            except Cancelled:
                return
            except ModelCacheError as error:
                logger.warning("`%s` could not be announced: %s", what.reason, error, extra={"error": error})

    def _post(self, what: Announcement, left_out: int, at_s: float) -> None:
        name = f"{self._node}.{secrets.token_hex(8)}"
        for tries_left in reversed(range(TRIES)):
            try:
                self._server.post(f"/api/v1/namespaces/{NAMESPACE}/events", self._event(name, what, left_out, at_s), self._cancel)
                return
            except SourceChanged:
                return  # an earlier try came through, and its answer did not
            except ModelCacheError as error:
                if not error.retryable or tries_left == 0:
                    raise
                self._cancel.wait(AGAIN_S if error.retry_after_s is None else min(error.retry_after_s, REFILL_S))

    def _event(self, name: str, what: Announcement, left_out: int, at_s: float) -> dict[str, Any]:
        more = f" ({left_out} more events were left out)" if left_out else ""
        at = datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "involvedObject": self._subject(),
            "type": "Warning" if what.warning else "Normal",
            "reason": what.reason,
            "message": what.message[: MAX_CHARACTERS - len(more)] + more,
            "source": {"component": AGENT, "host": self._node},
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }

    def _subject(self) -> dict[str, str]:
        """The LocalModelNode that there is now; the Node where there is none, or it may not be looked at."""
        try:
            found = self._server.get(f"{API}/{NODES}/{self._node}", self._cancel)
            return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "LocalModelNode", "name": self._node, "uid": str(found["metadata"]["uid"])}
        except (NotFound, AccessDenied):
            return {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": self._node}  # as kubelet names it
