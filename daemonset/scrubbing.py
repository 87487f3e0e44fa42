"""Reading back in the background what the disk keeps: a part of a day's budget at a time, and putting right what is damaged."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from daemonset.announcing import Announce, silently
from daemonset.events import tell_damaged, tell_mended, tell_repaired, tell_unrepaired
from daemonset.metrics import Metrics
from modelcache.abc.store import VerifyReport
from modelcache.cache import ModelCache
from modelcache.errors import Cancelled, ModelCacheError
from modelcache.patience import Cancellation
from modelcache.units import GIB, MIB

logger = logging.getLogger(__name__)
DAY_S = 86_400.0


@dataclass(frozen=True)
class ScrubBudget:
    """How much is read back.

    Attributes:
        bytes_per_day: on average; 0: nothing is.
        bytes_per_s: while it reads.
        every_s: from one part to the next.
    """

    bytes_per_day: int = 256 * GIB
    bytes_per_s: int = 64 * MIB
    every_s: float = 3600.0

    @property
    def part_bytes(self) -> float:
        return self.bytes_per_day * self.every_s / DAY_S


class Credit:
    """What may be read: grows by a part each time, up to a day's, and pays for what was read; a large blob leaves a debt."""

    def __init__(self, budget: ScrubBudget) -> None:
        self._budget = budget
        self._bytes = 0.0

    def grown(self) -> int:
        """Another part; bytes that may be read now, or 0."""
        self._bytes = min(self._bytes + self._budget.part_bytes, self._budget.bytes_per_day)
        return max(0, int(self._bytes))

    def spend(self, count: int) -> None:
        self._bytes -= count


class Scrubber:
    """Scrubs from a part's time after its beginning, until `ending` or its end. A context manager."""

    def __init__(
        self, cache: ModelCache, metrics: Metrics, budget: ScrubBudget, ending: Cancellation, announce: Announce = silently
    ) -> None:
        self._cache = cache
        self._metrics = metrics
        self._budget = budget
        self._ending = ending
        self._announce = announce
        self._credit = Credit(budget)
        self._thread = threading.Thread(target=self._work, name="agent scrub", daemon=True)

    def __enter__(self) -> Self:
        if self._budget.bytes_per_day > 0:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.cancel()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            while True:
                self._ending.wait(self._budget.every_s)
                self._scrub()
        except Cancelled:
            logger.debug("scrub ended")

    def _scrub(self) -> None:
        allowed_bytes = self._credit.grown()
        if allowed_bytes == 0:
            return
        try:
            report = self._cache.scrub(budget_bytes=allowed_bytes, bytes_per_s=self._budget.bytes_per_s, cancel=self._ending)
            self._credit.spend(report.bytes_read)
            self._metrics.verified(report.bytes_read, len(report.damages))
            self._metrics.scrubbed("damaged" if report.damages else "ok")
            if report.damages:
                self._repair(report)
        except Cancelled:
            raise
        except ModelCacheError as error:
            self._metrics.scrubbed(str(error.code))
            logger.warning("a scrub failed: %s", error, extra={"error": error})

    def _repair(self, found: VerifyReport) -> None:
        for damage in found.damages:
            tell_damaged(damage, self._announce)
        report = self._cache.repair(verified=found, cancel=self._ending)
        self._metrics.repaired(len(report.blobs), len(report.unrepaired))
        for blob in report.blobs:
            tell_repaired(blob, self._announce)
        for mended in report.mended:
            tell_mended(mended, self._announce)
        for left in report.unrepaired:
            tell_unrepaired(left, self._announce)
