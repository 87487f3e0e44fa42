"""Calls that block for as long as somebody else likes, with a deadline and cancellation."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from modelcache.errors import ModelCacheError, OriginStalled
from modelcache.patience import Cancellation
from modelcache.sources.any_fsspec.refusals import Asked, error_of

T = TypeVar("T")


class _Outcome(Generic[T]):
    def __init__(self, value: T | None = None, error: Exception | None = None) -> None:
        self.value = value
        self.error = error


def called(action: Callable[[], T], timeout_s: float, cancel: Cancellation, asked: Asked) -> T:
    """Run `action` in a thread of its own and wait for it.

    One that doesn't end in time is left alone: its thread ends with the process at the latest, and nothing that it still returns is
    looked at. So `action` must not write into memory of the caller.

    Raises: what `action` raises, as an error of ours; OriginStalled; Cancelled.
    """
    cancel.check()
    outcomes: queue.SimpleQueue[_Outcome[T] | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcomes.put(_Outcome(action()))
        except Exception as error:
            outcomes.put(_Outcome(error=error))

    with cancel.on_cancel(lambda: outcomes.put(None)):
        threading.Thread(target=work, name="fsspec", daemon=True).start()
        try:
            outcome = outcomes.get(timeout=timeout_s)
        except queue.Empty:
            outcome = _Outcome(error=OriginStalled(f"the filesystem gave no answer for {timeout_s:g} s", address=asked.address))
    if outcome is None:
        cancel.check()
        raise AssertionError("unreachable")
    if outcome.error is None:
        return outcome.value  # type: ignore[return-value]  # no error: `action` gave a value, which may be None
    if isinstance(outcome.error, ModelCacheError):
        raise outcome.error
    raise error_of(outcome.error, asked)
