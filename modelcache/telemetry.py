"""What a thread works on, for logs and spans: follows the work into the threads that do it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Subject:
    """What is worked on.

    Attributes:
        request: the id of the question that caused it; of what several wait for, the first one's.
        model: the canonical URI, which holds no secret.
        trace: the caller's `traceparent` (W3C Trace Context), as it was sent.
    """

    request: str | None = None
    model: str | None = None
    trace: str | None = None


NOTHING = Subject()
_subject: ContextVar[Subject] = ContextVar("modelcache subject", default=NOTHING)


def subject() -> Subject:
    """Of this thread, now."""
    return _subject.get()


def begin(work: Subject) -> None:
    """From now on this thread works on this."""
    _subject.set(work)


@contextmanager
def about(*, request: str | None = None, model: str | None = None) -> Iterator[None]:
    """Work on this for the block; what is left out stays as it was. Not around a generator's `yield`: that may end in another thread."""
    before = _subject.get()
    token = _subject.set(Subject(request or before.request, model or before.model, before.trace))
    try:
        yield
    finally:
        _subject.reset(token)
