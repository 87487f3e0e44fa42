"""Ctrl-C at a chosen instant, again and again at the same."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType


class Instants:
    """Where Ctrl-C can reach this thread: the interpreter looks for signals when a function of Python begins and one of C has returned.

    Attributes:
        count: how many there were.
        locks: taken there, that Ctrl-C between their taking and the block that gives them back leaves taken for ever.
    """

    def __init__(self, stop_at: int = 0) -> None:
        self.count = 0
        self.locks: list[str] = []
        self._stop_at = stop_at

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event not in ("call", "c_return") or is_within(frame, threading.Thread.start):  # where a lost lock costs seconds, and no more
            return
        self.count += 1
        if frame.f_code is threading.Condition.__enter__.__code__:
            self.locks.append(str(frame.f_back))
        if self.count == self._stop_at:
            sys.setprofile(None)
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        sys.setprofile(self)

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)


def is_within(frame: FrameType | None, function: Callable[..., object]) -> bool:
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None
