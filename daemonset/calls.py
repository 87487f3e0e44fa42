"""The calls that are under way: what a drain waits for, and where errors become statuses."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import grpc

from modelcache.agent.failures import KEY, details_of, encoded, status_of
from modelcache.errors import AgentBusy, AgentDraining, ErrorCode, ModelCacheError
from modelcache.patience import Cancellation
from modelcache.telemetry import Subject, begin

logger = logging.getLogger(__name__)
REQUEST_ID, TRACE = "x-request-id", "traceparent"
"""Metadata that a caller may send: how it names this call, and W3C Trace Context."""
_PROPER_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
MAX_TRACE_CHARACTERS = 128
RETRY_AFTER_S = 2.0
"""Told to who finds too many waiting."""


class Waiters:
    """How many calls of one socket may last at once, so that threads are left for those that don't. Thread-safe."""

    def __init__(self, most: int) -> None:
        """`most`: of them three quarters for one namespace, so that one whose origins never answer keeps the others from nothing."""
        self._most = most
        self._most_of_one = most - most // 4
        self._lock = threading.Lock()
        self._count: Counter[str] = Counter()

    @contextmanager
    def one(self, namespace: str = "") -> Iterator[None]:
        """A call that may last, for the block. Raises AgentBusy: there are `most`, or too many of this namespace (empty: nobody's)."""
        with self._lock:
            free = self._most - self._count.total()
            mine = free if not namespace else min(free, self._most_of_one - self._count[namespace])
            if mine > 0:
                self._count[namespace] += 1
        if mine <= 0:
            most = self._most_of_one if free > 0 else self._most
            raise AgentBusy("as many calls as are served at once wait already", expected=f"{most} at most", retry_after_s=RETRY_AFTER_S)
        try:
            yield
        finally:
            with self._lock:
                self._count[namespace] -= 1
                self._count += Counter()  # none of a namespace is no entry


class Calls:
    """Counts calls; turns new ones away while draining. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._draining = False
        self.refused: Callable[[ErrorCode], None] | None = None  # told of each call that ends with an error
        self.ending = Cancellation()
        """Asked for when a drain begins: what nobody waits for ends at once."""

    @property
    def draining(self) -> bool:
        return self._draining

    @contextmanager
    def under_way(self, context: grpc.ServicerContext, *, begins_work: bool, awaited: bool = True) -> Iterator[None]:
        """For the block of one call; a `ModelCacheError` in it ends the call with its status.

        Args:
            begins_work: refused while draining.
            awaited: a drain waits for its end; a drain itself is not.
        """
        begin(_subject_of(context))
        with self._changed:
            refused = begins_work and self._draining
            if not refused:
                self._count += awaited
        if refused:
            self._abort(context, AgentDraining("the agent of this node is ending and takes no new work"))
        try:
            yield
        except ModelCacheError as error:
            self._abort(context, error)
        finally:
            with self._changed:
                self._count -= awaited
                self._changed.notify_all()

    def drain(self, timeout_s: float) -> int:
        """Take no new work, and wait until all calls have ended, or the time is up; how many are left."""
        until_s = time.monotonic() + timeout_s
        with self._changed:
            self._draining = True
        self.ending.cancel()
        with self._changed:
            while self._count > 0 and (left_s := until_s - time.monotonic()) > 0:
                self._changed.wait(left_s)
            return self._count

    def _abort(self, context: grpc.ServicerContext, error: ModelCacheError) -> NoReturn:
        logger.info("refused: %s", error, extra={"event": "refused", "error": error})
        if self.refused is not None:
            self.refused(error.code)
        context.set_trailing_metadata(((KEY, encoded(error)),))
        context.abort(status_of(error), details_of(error))
        raise AssertionError("unreachable")  # abort raises; its stub doesn't say so


def _subject_of(context: grpc.ServicerContext) -> Subject:
    """The id that the caller gave this call, or a new one."""
    sent = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    named = sent.get(REQUEST_ID, "")
    request = named if _PROPER_ID.fullmatch(named) else os.urandom(8).hex()
    return Subject(request, trace=sent.get(TRACE, "")[:MAX_TRACE_CHARACTERS] or None)
