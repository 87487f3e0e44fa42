"""Connections kept for the next request."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from modelcache.transport.dial import Route
from modelcache.transport.wire import After, Wire

MAX_IDLE = 64
"""Kept connections of one source, all routes together: as many as a fetch has requests in flight."""
MAX_IDLE_AGE_S = 30.0
"""Under the idle limit of common servers (nginx `keepalive_timeout` 75 s), so that a kept connection is rarely a closed one."""


FRESH_S = 0.05
"""A connection that was found silent so short a time ago is not looked at again: between two small files it would be every time."""


@dataclass(frozen=True, slots=True)
class _Idle:
    route: Route
    wire: Wire
    since_s: float
    silent: bool


class Pool:
    """Idle connections, newest used first. Safe for many threads."""

    def __init__(self, *, max_idle: int = MAX_IDLE, max_age_s: float = MAX_IDLE_AGE_S, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._max_idle = max_idle
        self._max_age_s = max_age_s
        self._lock = threading.Lock()
        self._idle: deque[_Idle] = deque()
        self._closed = False

    def take(self, route: Route) -> Wire | None:
        """A connection of this route that its peer has left open and silent, or None."""
        while True:
            with self._lock:
                stale = self._expired()
                kept = next((entry for entry in reversed(self._idle) if entry.route == route), None)
                if kept is not None:
                    self._idle.remove(kept)
            for entry in stale:
                entry.wire.close()
            if kept is None:
                return None
            fresh = kept.silent and self._now_s() - kept.since_s < FRESH_S
            if fresh or kept.wire.after(0) is After.SILENT:
                return kept.wire
            kept.wire.close()

    def give(self, route: Route, wire: Wire, *, silent: bool = False) -> None:
        """Keep a connection whose last answer was read to its end; the oldest gives way if there are too many.

        `silent`: whoever gives it has just seen that nothing follows.
        """
        with self._lock:
            stale = self._expired()
            if self._closed:
                stale.append(_Idle(route, wire, 0, silent))
            else:
                self._idle.append(_Idle(route, wire, self._now_s(), silent))
            while len(self._idle) > self._max_idle:
                stale.append(self._idle.popleft())
        for entry in stale:
            entry.wire.close()

    def close(self) -> None:
        """Close what is idle; connections given back later are closed at once."""
        with self._lock:
            self._closed = True
            idle = list(self._idle)
            self._idle.clear()
        for entry in idle:
            entry.wire.close()

    def _expired(self) -> list[_Idle]:
        """Take out those that were idle for too long; the deque is in order of age."""
        limit_s = self._now_s() - self._max_age_s
        stale = []
        while self._idle and self._idle[0].since_s < limit_s:
            stale.append(self._idle.popleft())
        return stale
