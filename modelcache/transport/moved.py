"""Where redirects ended, remembered in memory so that a file of many ranges is resolved once."""

from __future__ import annotations

import threading
from collections import OrderedDict

from modelcache.transport.target import Target

MAX_REMEMBERED = 4096
"""About a kilobyte each (a presigned URL)."""


class MovedTargets:
    """Locator → last redirect target, least recently used forgotten first. Safe for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._targets: OrderedDict[str, Target] = OrderedDict()

    def of(self, locator: str) -> Target | None:
        with self._lock:
            target = self._targets.get(locator)
            if target is not None:
                self._targets.move_to_end(locator)
            return target

    def remember(self, locator: str, target: Target) -> None:
        with self._lock:
            self._targets[locator] = target
            self._targets.move_to_end(locator)
            while len(self._targets) > MAX_REMEMBERED:
                self._targets.popitem(last=False)

    def forget(self, locator: str) -> None:
        with self._lock:
            self._targets.pop(locator, None)

    def forget_all(self, beginning: str) -> None:
        """Of every locator that begins so."""
        with self._lock:
            for locator in [each for each in self._targets if each.startswith(beginning)]:
                del self._targets[locator]
