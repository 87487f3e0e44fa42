"""The agent's log: a JSON object a line, and the last of them kept in memory for who asks later (docs/agent.md, Logs)."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

from modelcache.agent.log import LogEntry
from modelcache.errors import ModelCacheError
from modelcache.redaction import redact
from modelcache.telemetry import subject

logger = logging.getLogger(__name__)
KEPT = 512
"""Lines in memory. With the bounds below that is at most 4 MiB, and a tenth of it as things are."""
TEXT_CHARACTERS, TRACEBACK_CHARACTERS, NAME_CHARACTERS = 2000, 6000, 1000
LEVELS = ("debug", "info", "warning", "error")
JSON, TEXT = "json", "text"
FORMATS = (JSON, TEXT)


def entry_of(record: logging.LogRecord, environ: Mapping[str, str]) -> LogEntry:
    """A record without secrets, each text cut to its bound.

    `extra={"event": …, "model": …, "fields": {…}}` names an event (docs/agent.md); request and model are else those that the thread
    works on.
    """
    about = subject()
    error = record.exc_info[1] if record.exc_info else getattr(record, "error", None)
    trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
    model = getattr(record, "model", None) or about.model
    return LogEntry(
        time_s=record.created,
        level=record.levelname.lower(),
        logger=record.name,
        message=_safe(record.getMessage(), TEXT_CHARACTERS, environ),
        event=getattr(record, "event", None),
        model=None if model is None else _safe(model, NAME_CHARACTERS, environ),
        request=getattr(record, "request", None) or about.request,
        error=str(error.code) if isinstance(error, ModelCacheError) else None,
        fields={name: _plain(value, environ) for name, value in getattr(record, "fields", {}).items()},
        traceback=None if trace is None else _safe(trace, TRACEBACK_CHARACTERS, environ),
    )


class Recent(logging.Handler):
    """The last lines, the oldest first. Thread-safe."""

    def __init__(self, environ: Mapping[str, str], kept: int = KEPT) -> None:
        super().__init__(logging.INFO)
        self._environ = environ
        self._entries: deque[LogEntry] = deque(maxlen=kept)
        self._guard = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        entry = entry_of(record, self._environ)
        with self._guard:
            self._entries.append(entry)

    def entries(self) -> Sequence[LogEntry]:
        with self._guard:
            return tuple(self._entries)


class JsonLines(logging.Formatter):
    """One JSON object; what an entry doesn't have is left out."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__()
        self._environ = environ

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(entry_of(record, self._environ).as_dict(), ensure_ascii=False)


class Lines(logging.Formatter):
    """The same for people."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__()
        self._environ = environ

    def format(self, record: logging.LogRecord) -> str:
        entry = entry_of(record, self._environ)
        about = "".join(f" {name}={value}" for name, value in (("request", entry.request), ("model", entry.model)) if value)
        fields = "".join(f" {name}={value}" for name, value in entry.fields.items())
        text = f"{entry.time} {entry.level.upper()} {entry.logger}: {entry.message}{about}{fields}"
        return text if entry.traceback is None else f"{text}\n{entry.traceback}"


@contextmanager
def logging_to(stream: TextIO | None = None, *, form: str = JSON, level: str = "info") -> Iterator[Recent]:
    """Have everything that is logged in this process written to a stream (stderr) and kept, for the block; and what ends a thread, too."""
    environ = dict(os.environ)
    written = logging.StreamHandler(stream or sys.stderr)
    written.setLevel(level.upper())
    written.setFormatter((Lines if form == TEXT else JsonLines)(environ))
    recent = Recent(environ)
    root = logging.getLogger()
    before = root.level
    root.setLevel(min(written.level, recent.level))
    handlers: tuple[logging.Handler, ...] = (written, recent)
    for handler in handlers:
        root.addHandler(handler)
    ended, threading.excepthook = threading.excepthook, _tell_ended
    try:
        yield recent
    finally:
        threading.excepthook = ended
        root.setLevel(before)
        for handler in handlers:
            root.removeHandler(handler)


def _tell_ended(told: threading.ExceptHookArgs) -> None:
    name = told.thread.name if told.thread is not None else "unnamed"
    error = told.exc_value or told.exc_type()
    logger.critical("the thread `%s` has ended: what it did is done no more", name, exc_info=error)


def _plain(value: object, environ: Mapping[str, str]) -> str | int | float | bool:
    return value if isinstance(value, int | float | bool) else _safe(str(value), NAME_CHARACTERS, environ)


def _safe(text: str, most: int, environ: Mapping[str, str]) -> str:
    shown = redact(text[: 2 * most], environ)  # a bound on the work, too
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
