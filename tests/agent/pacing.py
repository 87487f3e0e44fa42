"""A reporter whose clock only moves when a test says so, and what it told the API server when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from daemonset.reporting import Reporter
from modelcache.k8s.api import ApiServer, Object
from modelcache.k8s.node import ModelReport, State
from modelcache.patience import Cancellation, Deadline


class Telling:
    """What a reporter tells of one model, `m`, of 1,000 bytes.

    Attributes:
        told: at which second of the clock, and of how many bytes.
    """

    def __init__(self, api: ApiServer, node: str) -> None:
        self.told: list[tuple[float, int]] = []
        self.now_s = 0.0
        self._report = ModelReport(State.DOWNLOADING, bytes_done=0, bytes_total=1000)
        self._looks, self._looked = 0, threading.Event()
        self._apply, api.apply = api.apply, self._noted  # type: ignore[method-assign]
        self._reporter = Reporter(api, node, self._reports, Cancellation(), clock=lambda: self.now_s)

    @contextmanager
    def of(self, node: Object) -> Iterator[None]:
        """Reporting, from the first word on."""
        with self._reporter:
            self._reporter.seen(node)
            self._settle()
            yield

    def after(self, seconds: int, *, bytes_a_second: int = 0) -> None:
        """Second by second: each is looked at before the next one begins."""
        for _ in range(seconds):
            self.now_s += 1.0
            self._report = replace(self._report, bytes_done=self._report.bytes_done + bytes_a_second)
            self._settle()

    def ends(self) -> None:
        """The model is here."""
        self._report = replace(self._report, state=State.DOWNLOADED, bytes_done=1000)
        self._settle()

    def _reports(self) -> dict[str, ModelReport]:
        self._looks += 1
        self._looked.set()
        return {"m": self._report}

    def _noted(self, path: str, body: Object, *, manager: str, cancel: Cancellation) -> Object:
        self.told.append((self.now_s, body["status"]["models"]["m"]["bytesDone"]))
        return self._apply(path, body, manager=manager, cancel=cancel)

    def _settle(self) -> None:
        """Until a look that began at this second has ended, and with it what it told: the third one from here begins after that."""
        wanted, deadline = self._looks + 3, Deadline.after(60.0)
        while self._looks < wanted:
            assert not deadline.passed
            self._looked.clear()
            self._reporter.changed()
            self._looked.wait(0.002)  # it may have been about to wait, and not have heard
