"""Waiting for what tells nobody when it comes."""

from __future__ import annotations

import time
from collections.abc import Callable

from modelcache.patience import Deadline

LOOK_EVERY_S = 0.05


def until(holds: Callable[[], bool], what: str, *, deadline_s: float = 60.0) -> None:
    """Look until something holds. Raises AssertionError: it did not in time."""
    deadline = Deadline.after(deadline_s)
    while not holds():
        assert not deadline.passed, f"waited {deadline_s:g} s for {what}"
        time.sleep(LOOK_EVERY_S)
