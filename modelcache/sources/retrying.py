"""Patience with an origin: failures that pass are waited out and tried again, mid-body at the next byte."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from modelcache.abc.source import Body, Listing, Origin, RemoteFile, Source
from modelcache.errors import NotFound, OriginBusy, OriginUnreachable, Unavailable
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.globs import hint_of_glob
from modelcache.uri import StorageUri

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """How long a failing origin is asked again, without progress: each byte that arrives starts the count anew.

    Attributes:
        deadline_s: from the first failure; nothing is tried later.
        attempts: in all, the first included.
        first_contact_attempts: in all, while a listing can't even connect: more often a wrong name than an outage, and nothing is
            lost by telling so soon.
        base_s, cap_s: the n-th pause is drawn from 0 to `base_s` times 2 to the n-th, at most `cap_s` (full jitter, so that many
            clients of one origin spread: Exponential Backoff And Jitter, AWS Architecture Blog, 2015).
    """

    deadline_s: float = 300.0
    attempts: int = 12
    first_contact_attempts: int = 4
    base_s: float = 0.25
    cap_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What passes time: replaced in tests, so that they need none.

    Attributes:
        now_s: a monotonic clock.
        pause: waits, and raises Cancelled when the stop is asked for.
        jitter: uniform in [0, 1).
    """

    now_s: Callable[[], float] = time.monotonic
    pause: Callable[[Cancellation, float], None] = Cancellation.wait
    jitter: Callable[[], float] = random.random


class RetryingSource:
    """Any source, with its passing failures (`Unavailable` and `retryable`) tried again. Safe for many threads.

    `Retry-After` is obeyed: no pause is shorter than asked, and one that would pass the deadline is not begun: the error is
    raised at once, with what was asked in it. A body that breaks goes on at its next byte if its file is `resumable`; others raise.
    """

    def __init__(
        self,
        source: Source,
        limits: RetryLimits | None = None,
        *,
        on_throttle: Callable[[Origin], None] | None = None,
        pace: Pace | None = None,
    ) -> None:
        """
        Args:
            on_throttle: told, in the failing thread, each time that an origin answers that it is busy (429, 503, other 5xx); quick.
        """
        self._source = source
        self._limits = limits or RetryLimits()
        self._on_throttle = on_throttle
        self._pace = pace or Pace()

    @property
    def origin(self) -> Origin:
        return self._source.origin

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        """As `Source.list`."""
        tries = self._tries(first_contact=True)
        while True:
            try:
                return self._source.list(uri, cancel)
            except Unavailable as error:
                tries.failed(error, cancel)
            except NotFound as error:
                error.hint = hint_of_glob(uri) or error.hint
                raise

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """As `Source.open`; opening is tried again whatever the file."""
        tries = self._tries()
        return _RetryingBody(_open(self._source, file, span, cancel, tries), (self._source, file, span), cancel, tries)

    def close(self) -> None:
        """As `Source.close`."""
        self._source.close()

    def _tries(self, *, first_contact: bool = False) -> _Tries:
        return _Tries(self._limits, self._pace, self._throttled, first_contact=first_contact)

    def _throttled(self) -> None:
        if self._on_throttle is not None:
            self._on_throttle(self._source.origin)


class _Tries:
    """Failures of one call since its last progress."""

    def __init__(self, limits: RetryLimits, pace: Pace, on_throttle: Callable[[], None], *, first_contact: bool = False) -> None:
        self._limits = limits
        self._first_contact = first_contact
        self._pace = pace
        self._on_throttle = on_throttle
        self._failures = 0
        self._give_up_s = 0.0

    def progress(self) -> None:
        """A byte arrived."""
        self._failures = 0

    def failed(self, error: Unavailable, cancel: Cancellation, said_on: Cancellation | None = None) -> None:
        """Pause before the next try; `said_on` (by default `cancel`) tells why. Raises `error` if there is to be none, or Cancelled."""
        if isinstance(error, OriginBusy):
            self._on_throttle()
        cancel.check()
        now_s = self._pace.now_s()
        if self._failures == 0:
            self._give_up_s = now_s + self._limits.deadline_s
        self._failures += 1
        unreachable = self._first_contact and isinstance(error, OriginUnreachable)
        attempts = min(self._limits.attempts, self._limits.first_contact_attempts) if unreachable else self._limits.attempts
        backoff_s = min(self._limits.cap_s, self._limits.base_s * 2 ** min(self._failures, 30)) * self._pace.jitter()
        pause_s = max(backoff_s, error.retry_after_s or 0.0)
        if not error.retryable or self._failures >= attempts or now_s + pause_s > self._give_up_s:
            raise error
        _log.info("%s; try %d in %.1f s", error, self._failures + 1, pause_s)
        with (said_on or cancel).saying(error.message, pause_s):
            self._pace.pause(cancel, pause_s)


class _RetryingBody:
    """The bytes of one range, over as many requests as it takes; a `modelcache.abc.source.Body`."""

    def __init__(self, body: Body, asked: tuple[Source, RemoteFile, ByteRange], cancel: Cancellation, tries: _Tries) -> None:
        self._body = body
        self._source, self._file, span = asked
        self._at = span.start
        self._stop = span.stop
        self._tries = tries
        # Its own, so that `abort` also ends a pause between two tries, without ending what else the caller's stands for.
        self._cancel = Cancellation()
        self._callers = cancel
        self.stated = body.stated
        self._undo = ExitStack()
        self._undo.enter_context(cancel.on_cancel(self.abort))

    def readinto(self, buffer: memoryview) -> int:
        """As `Body.readinto`."""
        while True:
            try:
                count = self._body.readinto(buffer)
            except Unavailable as error:
                if self._at == self._stop:  # every byte came; what is to be told after them did not
                    self._tries.failed(error, self._cancel, self._callers)
                elif self._file.resumable:
                    self._resume(error)
                else:
                    raise
            else:
                if count:
                    self._at += count
                    self._tries.progress()
                return count

    def close(self) -> None:
        """As `Body.close`."""
        self._undo.close()
        self._body.close()

    def abort(self) -> None:
        """As `Body.abort`."""
        self._cancel.cancel()
        self._body.abort()

    def _resume(self, error: Unavailable) -> None:
        self._body.close()
        self._tries.failed(error, self._cancel, self._callers)
        rest = ByteRange(self._at, self._stop)
        self._body = _open(self._source, self._file, rest, self._cancel, self._tries, said_on=self._callers)
        # An abort between the open and this assignment hit the old body; the new one knows of it through the cancellation.


def _open(
    source: Source, file: RemoteFile, span: ByteRange, cancel: Cancellation, tries: _Tries, *, said_on: Cancellation | None = None
) -> Body:
    while True:
        try:
            return source.open(file, span, cancel)
        except Unavailable as error:
            tries.failed(error, cancel, said_on)
