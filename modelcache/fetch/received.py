"""What fetches of one process do, for who counts it: bytes as they come from origins, those that need not come, seconds by phase."""

from __future__ import annotations

from typing import Protocol

from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase


class Listener(Protocol):
    """Is told from any thread, and is quick. `uri`: canonical, that it is done for."""

    def came(self, uri: str, priority: Priority, count: int) -> None:
        """Bytes from an origin: each once, however many wait for it, and again if it has to come again."""

    def was_here(self, uri: str, count: int) -> None:
        """Bytes that a fetch which has succeeded did not have to bring: once a fetch, however many wait for it."""

    def spent(self, uri: str, phase: Phase, elapsed_s: float) -> None:
        """A phase has ended of what asks an origin, for however many."""


class Received:
    """Tells who listens. Thread-safe."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """From now on, until this ends."""
        self._listeners.append(listener)

    def tell(self, uri: str, priority: Priority, count: int) -> None:
        for listener in self._listeners:
            listener.came(uri, priority, count)

    def tell_reused(self, uri: str, count: int) -> None:
        for listener in self._listeners:
            listener.was_here(uri, count)

    def tell_phase(self, uri: str, phase: Phase, elapsed_s: float) -> None:
        for listener in self._listeners:
            listener.spent(uri, phase, elapsed_s)
