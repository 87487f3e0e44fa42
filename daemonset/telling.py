"""A call that lasts: what its thread tells as it works, and a heartbeat while it has nothing to tell."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc

from modelcache.patience import Cancellation

T = TypeVar("T")
R = TypeVar("R")
HEARTBEAT_S = 1.0
"""A call that lasts tells its progress at least so often, so that its client knows a slow one from a dead one."""


@dataclass(frozen=True, slots=True)
class _Said(Generic[T, R]):
    """One of these, from the thread that works."""

    told: tuple[T] | None = None
    result: tuple[R] | None = None
    error: BaseException | None = None


def told(run: Callable[[Callable[[T], None], Cancellation], R], context: grpc.ServicerContext) -> Generator[T | R, None, None]:
    """What `run` tells, the last of it again at least every HEARTBEAT_S, and its result at the end. A client that goes away ends it."""
    said: queue.SimpleQueue[_Said[T, R]] = queue.SimpleQueue()
    cancel = Cancellation()

    def work() -> None:
        try:
            said.put(_Said(result=(run(lambda what: said.put(_Said(told=(what,))), cancel),)))
        except BaseException as error:
            said.put(_Said(error=error))

    if not context.add_callback(cancel.cancel):
        return  # its client has gone already
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="agent call")
    thread.start()
    last: tuple[T] | None = None
    try:
        while True:
            try:
                what = said.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                if last is not None:
                    yield last[0]
                continue
            if what.error is not None:
                raise what.error
            if what.result is not None:
                yield what.result[0]
                return
            if what.told is not None:
                last = what.told
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
