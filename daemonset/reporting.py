"""Tells the API server what this node has: when something changed, and how far it is now and then."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from daemonset.backoff import Backoff
from modelcache.errors import AccessDenied, Cancelled, ModelCacheError, NotFound
from modelcache.k8s.api import ApiServer
from modelcache.k8s.names import AGENT, API, NODES, STATUS_ANNOTATION
from modelcache.k8s.node import ModelReport, Object, node_with, other_writers, state_texts, states_of, status_of
from modelcache.patience import Cancellation

logger = logging.getLogger(__name__)
PROGRESS_EVERY_S = 10.0
PROGRESS_SHARE = 0.05
LEAST_S = 1.0
"""Changes in between go together."""
JITTER = 0.2
AGAIN = Backoff(1.0, 120.0)
NOT_DECLARED = "not declared in schema"
"""What server-side apply says of a field that the served definition lacks: KServe's own has no room for ours."""
LOOK_AGAIN_S = 600.0
"""After which a definition that lacked our fields is tried again."""

NO_GENERATION = -1
"""Of no spec: Kubernetes counts from 1."""

Reports = Mapping[str, ModelReport]


@dataclass(frozen=True, slots=True)
class Told:
    """What the API server was told last, and when (monotonic)."""

    reports: Reports
    generation: int
    at_s: float


def due_s(told: Told | None, reports: Reports, generation: int) -> float | None:
    """When to tell this (monotonic time, before jitter); None: it is not worth it yet.

    A change of state at once, progress at most every PROGRESS_EVERY_S and PROGRESS_SHARE.
    """
    if told is None:
        return 0.0
    if told.generation != generation or {k: _settled(v) for k, v in told.reports.items()} != {k: _settled(v) for k, v in reports.items()}:
        return told.at_s + LEAST_S
    moved = (abs(report.bytes_done - told.reports[key].bytes_done) / max(report.bytes_total, 1) for key, report in reports.items())
    return told.at_s + PROGRESS_EVERY_S if any(share >= PROGRESS_SHARE for share in moved) else None


def unless_overwritten(told: Told, node: Object) -> Told:
    """The same; to be told again if somebody wrote another status over it, or this is one of before. When stays: who writes over
    each of ours at once gets no answer sooner than LEAST_S after the last."""
    return told if state_texts(node) == states_of(told.reports)["modelStatus"] else replace(told, generation=NO_GENERATION)


def _settled(report: ModelReport) -> ModelReport:
    """Without what moves."""
    return replace(report, bytes_done=0, bytes_per_s=0)


class Reporter:
    """A context manager: it reports from its beginning to its end, once it was told of an object. Thread-safe."""

    def __init__(
        self,
        api: ApiServer,
        node: str,
        reports: Callable[[], Reports],
        ending: Cancellation,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: monotonic, in seconds."""
        self._clock = clock
        self._api = api
        self._node = node
        self._reports = reports
        self._ending = ending
        self._changed = threading.Condition()
        self._generation: int | None = None
        self._looks = 0
        self._told: Told | None = None
        self._plain_until_s = 0.0
        self._others: tuple[str, ...] = ()
        self._thread = threading.Thread(target=self._work, name="agent reporter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.cancel()
        self.changed()
        self._thread.join()

    def changed(self) -> None:
        """A report may be another one."""
        with self._changed:
            self._changed.notify_all()

    def seen(self, node: Object | None) -> None:
        """The object as the API server has it; None: there is none, and nothing to tell."""
        with self._changed:
            self._looks += 1
            if node is None:
                self._generation = self._told = None
            else:
                self._generation = int(node["metadata"].get("generation", 0))
                self._told = None if self._told is None else unless_overwritten(self._told, node)
            self._changed.notify_all()

        others = () if node is None else other_writers(node, AGENT)
        if others != self._others and others:
            said = "this node's status is written by others, too (%s): two agents that make one node match undo each other's work"
            logger.warning(said, ", ".join(others), extra={"event": "others-write", "fields": {"writers": ", ".join(others)}})
        self._others = others

    def _work(self) -> None:
        failures = 0
        try:
            while True:
                due = self._next()
                try:
                    self._tell(*due)
                    failures = 0
                except Cancelled:
                    raise
                except ModelCacheError as error:
                    failures += 1
                    wait_s = AGAIN.after(failures, error.retry_after_s)
                    logger.warning("the status can't be reported, again in %.0f s: %s", wait_s, error, extra={"error": error})
                    self._ending.wait(wait_s)
        except Cancelled:
            logger.debug("reporter ended")

    def _next(self) -> tuple[dict[str, ModelReport], int]:
        """Wait until there is something to tell. Raises Cancelled."""
        late = random.uniform(1.0, 1.0 + JITTER)
        while True:
            self._ending.check()
            reports = dict(self._reports())
            with self._changed:
                generation, told = self._generation, self._told
                due = None if generation is None else due_s(told, reports, generation)
                now_s = self._clock()
                if due is not None and told is not None:
                    due = told.at_s + (due - told.at_s) * late
                if generation is not None and due is not None and due <= now_s:
                    return reports, generation
                self._changed.wait(LEAST_S if due is None else min(max(due - now_s, 0.01), LEAST_S))

    def _tell(self, reports: dict[str, ModelReport], generation: int) -> None:
        status, looks = status_of(reports, generation), self._looks
        try:
            if self._clock() < self._plain_until_s:
                self._tell_plainly(reports, status)
            else:
                self._apply(status)
        except NotFound:
            logger.info("the node's object went away")
            with self._changed:
                if self._looks == looks:  # else there may be another by now
                    self._generation = None
            return
        except ModelCacheError as error:
            if NOT_DECLARED not in error.message or self._clock() < self._plain_until_s:
                raise
            logger.info("the served definition has no room for modelcache's status: it goes into an annotation")
            self._plain_until_s = self._clock() + LOOK_AGAIN_S
            self._tell_plainly(reports, status)
        with self._changed:
            self._told = Told(reports, generation, self._clock())

    def _tell_plainly(self, reports: dict[str, ModelReport], status: Object) -> None:
        self._apply(states_of(reports))
        rest = json.dumps({name: value for name, value in status.items() if name != "modelStatus"}, separators=(",", ":"), sort_keys=True)
        try:
            self._api.merge(f"{API}/{NODES}/{self._node}", {"metadata": {"annotations": {STATUS_ANNOTATION: rest}}}, self._ending)
        except AccessDenied as error:
            logger.info("the annotation may not be written: only states are reported (%s)", error)

    def _apply(self, status: Object) -> None:
        path = f"{API}/{NODES}/{self._node}/status"
        self._api.apply(path, node_with(self._node, status), manager=AGENT, cancel=self._ending)
