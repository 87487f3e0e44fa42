"""Bytes as they come from origins, for who counts them."""

from __future__ import annotations

from collections.abc import Callable

from modelcache.fetch.plan import Priority

Listener = Callable[[str, Priority, int], None]
"""Is told the canonical URI that bytes are fetched for, how urgent that is just now, and how many came; from any thread, and quick."""


class Received:
    """Tells of every byte once, however many wait for it, and again if it has to come again. Thread-safe."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """From now on, until this ends."""
        self._listeners.append(listener)

    def tell(self, uri: str, priority: Priority, count: int) -> None:
        for listener in self._listeners:
            listener(uri, priority, count)
