"""A call that lasts: what its thread tells as it works, and a heartbeat while it has nothing to tell."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Generator, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

import grpc

from modelcache.patience import Cancellation

T = TypeVar("T")
R = TypeVar("R")
HEARTBEAT_S = 1.0
"""A call that lasts tells its progress at least so often, so that its client knows a slow one from a dead one."""


class _Said(Generic[T, R]):
    """What is to be told, for a client that may read slowly: of each subject the newest alone, and how it ended. Thread-safe."""

    def __init__(self, subject_of: Callable[[T], Hashable]) -> None:
        self._subject_of = subject_of
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, T] = {}
        self._end: Future[R] | None = None

    def tell(self, what: T) -> None:
        subject = self._subject_of(what)
        with self._changed:
            self._waiting.pop(subject, None)  # the newest comes last
            self._waiting[subject] = what
            self._changed.notify()

    def finish(self, end: Future[R]) -> None:
        with self._changed:
            self._end = end
            self._changed.notify()

    def next(self, timeout_s: float) -> tuple[T] | Future[R] | None:
        """The oldest that is to be told, the end after all of them; None: there was nothing for so long."""
        until_s = time.monotonic() + timeout_s
        with self._changed:
            while not self._waiting and self._end is None:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    return None
                self._changed.wait(left_s)
            if self._waiting:
                return (self._waiting.pop(next(iter(self._waiting))),)
            return self._end


def told(
    run: Callable[[Callable[[T], None], Cancellation], R],
    context: grpc.ServicerContext,
    subject_of: Callable[[T], Hashable] = lambda _: None,
) -> Generator[T | R, None, None]:
    """What `run` tells, the last of it again at least every HEARTBEAT_S, and its result at the end. A client that goes away ends it.

    Args:
        subject_of: what is told replaces what was told before of the same subject, and has not been sent yet.
    """
    said = _Said[T, R](subject_of)
    cancel = Cancellation()

    def work() -> None:
        end: Future[R] = Future()
        try:
            end.set_result(run(said.tell, cancel))
        except BaseException as error:
            end.set_exception(error)
        said.finish(end)

    if not context.add_callback(cancel.cancel):
        return  # its client has gone already
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="agent call")
    thread.start()
    last: tuple[T] | None = None
    try:
        while True:
            what = said.next(HEARTBEAT_S)
            if isinstance(what, Future):
                yield what.result()
                return
            last = what or last
            if last is not None:
                yield last[0]
    finally:
        cancel.cancel()
        thread.join()


def at_once(what: tuple[T, R]) -> Generator[T | R, None, None]:
    """The same of what waited for nothing."""
    yield from what


def both(first: Callable[[T], None], then: Callable[[T], None]) -> Callable[[T], None]:
    """Tells two."""

    def call(what: T) -> None:
        first(what)
        then(what)

    return call
