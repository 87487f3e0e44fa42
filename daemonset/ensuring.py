"""One question for a model: counted, logged and traced when it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from modelcache.errors import ModelCacheError
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Progress
from modelcache.telemetry import about, subject
from modelcache.uri import redact_url

if TYPE_CHECKING:
    from daemonset.metrics import Metrics
    from modelcache.permission import Caller

logger = logging.getLogger(__name__)


class Ensuring:
    """A context manager, entered and left in one thread."""

    def __init__(self, metrics: Metrics, uri: str, priority: Priority, caller: Caller | None) -> None:
        self._metrics = metrics
        self._uri = uri
        self._priority = priority.name.lower()
        self._caller = caller
        self._started_s = time.monotonic()
        self._last: Progress | None = None
        self._counts = True
        self._stack = ExitStack()

    def look(self, progress: Progress) -> None:
        self._last = progress

    def leave_out(self) -> None:
        """It came to nothing, and is asked again in another way."""
        self._counts = False

    def __enter__(self) -> Self:
        self._metrics.waiting.labels(self._priority).inc()
        self._stack.enter_context(about(model=redact_url(self._uri)))
        self._span = self._stack.enter_context(self._metrics.spans.span("ensure", subject().trace))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._metrics.waiting.labels(self._priority).dec()
        with self._stack:
            if self._counts:
                self._tell(error)
            else:
                self._span.leave_out()

    def _tell(self, error: BaseException | None) -> None:
        outcome, elapsed_s = outcome_of(error, self._last), time.monotonic() - self._started_s
        self._metrics.ensures.labels(outcome, self._priority).inc()
        self._metrics.seconds.labels(outcome).observe(elapsed_s)
        fields = fields_of(self._priority, elapsed_s, self._last)
        model = subject().model
        self._span.tell(
            {"modelcache.model": model or "", "modelcache.outcome": outcome, **{f"modelcache.{k}": v for k, v in fields.items()}}
        )
        if self._caller is not None:  # in the log alone
            fields |= {"namespace": self._caller.namespace, "service_account": self._caller.service_account}
        if error is not None:
            self._span.failed(outcome)
        tell_outcome(error, outcome, fields)


def tell_outcome(error: BaseException | None, outcome: str, fields: Mapping[str, str | int | float]) -> None:
    """In the log, of the model that this thread works on."""
    if error is None:
        level = logging.DEBUG if outcome == "hit" else logging.INFO
        logger.log(level, "%s", outcome, extra={"event": outcome, "fields": fields})
        return
    known = isinstance(error, ModelCacheError)
    logger.log(
        logging.WARNING if known else logging.ERROR,
        "not brought: %s",
        error,
        extra={"event": "failed", "error": error, "fields": fields},
        exc_info=None if known else error,
    )


def fields_of(priority: str, elapsed_s: float, last: Progress | None) -> dict[str, str | int | float]:
    """What belongs to the event. `last`: the last word of its progress."""
    fields: dict[str, str | int | float] = {"priority": priority, "elapsed_s": round(elapsed_s, 6)}
    return fields if last is None else fields | {"bytes_fetched": last.bytes_fetched, "bytes_reused": last.bytes_reused}


def outcome_of(error: BaseException | None, last: Progress | None) -> str:
    """`hit`, `fetched`, an error's code, or `internal`."""
    if error is not None:
        return str(error.code) if isinstance(error, ModelCacheError) else "internal"
    return "hit" if last is not None and last.hit else "fetched"
