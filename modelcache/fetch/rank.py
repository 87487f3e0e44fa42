"""The priority of a fetch: its own, or a higher one that is lent to it by those that wait for a file of it."""

from __future__ import annotations

from collections import Counter

from modelcache.fetch.plan import Priority


class Rank:
    """Not thread-safe; the engine's lock guards it.

    Attributes:
        own: priority of the most urgent who waits for this fetch.
    """

    def __init__(self, own: Priority) -> None:
        self.own = own
        self._lent: Counter[Priority] = Counter()

    @property
    def priority(self) -> Priority:
        """Its own, or that of the most urgent fetch that waits for a file of it."""
        return next((level for level in Priority if level < self.own and self._lent[level] > 0), self.own)

    def lend(self, priority: Priority) -> None:
        """A fetch of this priority waits for a file of this one."""
        self._lent[priority] += 1

    def unlend(self, priority: Priority) -> None:
        """It does no more."""
        self._lent[priority] -= 1
