"""How full the store may make a disk that kubelet watches: by kubelet's own configuration where it may be read, else by flags."""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from daemonset import kubelet
from daemonset.backoff import Backoff
from daemonset.kubelet import FILE_SYSTEM_OF, IMAGEFS, NODEFS, Sizes, Thresholds
from daemonset.metrics import Metrics
from daemonset.mounts import share_file_system
from daemonset.room import ROOM_MADE
from modelcache.abc.store import Limits
from modelcache.agent.watermarks import FLAGS, KUBELET, NONE, Watermarks
from modelcache.cache import ModelCache
from modelcache.errors import Cancelled, ModelCacheError
from modelcache.patience import Cancellation, Deadline

logger = logging.getLogger(__name__)
EVERY_S = 600.0
"""kubelet reads its configuration when it starts."""
AGAIN = Backoff(15.0, EVERY_S)
LOOK_S = 10.0
"""Between two looks how full the disk is; kubelet itself looks as often (its housekeeping interval)."""
IN_VAIN_S = 120.0
"""And so long after nothing could be freed: to look for what may leave reads every snapshot."""

CONFIGZ, SUMMARY = "/configz", "/stats/summary"
Ask = Callable[[str, Cancellation], dict[str, Any]]
"""What kubelet answers at a path. Raises ModelCacheError."""


@dataclass(frozen=True, slots=True)
class Kubelet:
    """What is known of this node's kubelet.

    Attributes:
        flags: thresholds that were given: each counts wherever the store is, with this value until kubelet tells its own.
        ask: None: it isn't asked.
        images: the container runtime's directory of images: imagefs is the file system that it is on. None: the one of the size that
            kubelet tells.
    """

    flags: Thresholds = ()
    ask: Ask | None = None
    images: Path | None = None


class WatermarkKeeper:
    """Has the store's watermarks clear of kubelet's thresholds: those of the flags at once, kubelet's own when it has told them, and as it
    tells them then. When others fill the disk past them, models that nobody holds leave. A context manager."""

    def __init__(self, cache: ModelCache, metrics: Metrics, known: Kubelet, pods: Path | None, ending: Cancellation) -> None:
        """
        Args:
            pods: kubelet's directory of pods: nodefs is the file system that it is on. None: the one of the size that kubelet tells.
        """
        self._cache = cache
        self._metrics = metrics
        self._limits = cache.config.limits
        self._known = known
        self._places = {name: place for name, place in ((NODEFS, pods), (IMAGEFS, known.images)) if place is not None}
        self._sizes = Sizes(None, None)
        self._ending = ending
        self._now = self._marks(FLAGS if known.flags else NONE, known.flags)
        self._thread = threading.Thread(target=self._work, name="agent watermarks", daemon=True)

    def __enter__(self) -> Self:
        """Raises BadConfig: the flags leave the store no room."""
        limits = self._capped(self._known.flags)
        kubelet.expect_room(limits, self._known.flags)
        self._cache.change_limits(limits)
        if self._known.ask is not None or self._known.flags:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.cancel()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def now(self) -> Watermarks:
        """Those in force."""
        return self._now

    def _work(self) -> None:
        failures = 0
        if self._known.flags:
            self._make_room()
        try:
            while True:
                wait_s = EVERY_S * random.uniform(1.0, 1.2)
                try:
                    if self._known.ask is not None:
                        why = self._take(*self._asked())
                        failures = 0 if why is None else failures + 1
                        wait_s = wait_s if why is None else AGAIN.after(failures)
                except Cancelled:
                    raise
                except ModelCacheError as error:
                    failures += 1
                    wait_s = AGAIN.after(failures, error.retry_after_s)
                    self._tell(replace(self._now, why=str(error)))
                self._watch(Deadline.after(wait_s))
        except Cancelled:
            logger.debug("kubelet is asked no more")

    def _watch(self, until: Deadline) -> None:
        """Make room when others fill the disk. Raises Cancelled."""
        look_s = LOOK_S
        while not until.passed:
            self._ending.wait(min(look_s, until.remaining_s()))
            look_s = LOOK_S
            if self._now.thresholds and self._is_passed() and self._make_room() == 0:
                look_s = IN_VAIN_S

    def _is_passed(self) -> bool:
        """Whether more of the disk is in use than the high watermark allows, by anyone."""
        try:
            found = os.statvfs(self._cache.root)
        except OSError:  # the disk is gone; others tell that
            return False
        return found.f_bavail < found.f_blocks - int(found.f_blocks * self._now.high)

    def _asked(self) -> tuple[Thresholds, str | None]:
        """What kubelet tells of this store's file system, and why that isn't all. Raises ModelCacheError."""
        if self._known.ask is None:
            return (), None
        found = kubelet.told(self._known.ask(CONFIGZ, self._ending))
        named = {name for name, _ in self._known.flags}
        shared, why = self._shared({FILE_SYSTEM_OF[name] for name, _ in found if name not in named}, self._known.ask)
        return [each for each in found if FILE_SYSTEM_OF[each[0]] in shared or each[0] in named], why

    def _shared(self, asked: Set[str], ask: Ask) -> tuple[Set[str], str | None]:
        """Which of these file systems of kubelet's the store is on: by device where a directory of it is seen, else by size. Images are
        taken to be on nodefs while nobody knows; then also why."""
        shared = {name for name, place in self._places.items() if share_file_system(self._cache.root, place)}
        unseen = asked - self._places.keys()
        why = self._measure(ask) if unseen else None
        for name in sorted(unseen, reverse=True):  # nodefs first
            same = self._sizes.may_hold(name, _total_bytes(self._cache.root))
            if same or (same is None and name == IMAGEFS and NODEFS in shared):
                shared.add(name)
            if same is None and why is None:
                why = f"how large {name} is"
        return shared, why

    def _measure(self, ask: Ask) -> str | None:
        """How large kubelet's file systems are; why that isn't known, or not as it is now."""
        try:
            self._sizes = kubelet.sizes_told(ask(SUMMARY, self._ending))
        except Cancelled:
            raise
        except ModelCacheError as error:
            return f"how large its file systems are ({error})"
        return None

    def _take(self, thresholds: Thresholds, why: str | None) -> str | None:
        before = self._now.high
        self._cache.change_limits(self._capped(thresholds))
        self._tell(replace(self._marks(KUBELET, thresholds), why=why))
        if self._now.high < before:
            self._make_room()
        return why

    def _make_room(self) -> int:
        """What is there beyond the thresholds goes now, before kubelet has pods go for it; the bytes freed."""
        try:
            report = self._cache.collect()
        except ModelCacheError as error:
            logger.warning("no room could be made under kubelet's thresholds: %s", error, extra={"error": error})
            return 0
        for evicted in report.evicted:
            self._metrics.evicted(evicted.freed_bytes, why=ROOM_MADE)
            fields = {"freed_bytes": evicted.freed_bytes, "digest": str(evicted.digest)}
            model = evicted.uris[0] if evicted.uris else None
            said = "evicted for kubelet's thresholds: %s"
            logger.info(said, evicted.digest, extra={"event": "evicted", "model": model, "fields": fields})
        return report.freed_bytes

    def _tell(self, now: Watermarks) -> None:
        before, self._now = self._now, now
        if now == before:
            return
        fields = {"source": now.source, "high_watermark": now.high, "thresholds": ",".join(now.thresholds)}
        level = logging.INFO if now.why is None and now.high > 0 else logging.WARNING
        logger.log(level, "the disk may be filled to %.0f %%; %s", now.high * 100, now, extra={"event": "thresholds", "fields": fields})

    def _marks(self, source: str, thresholds: Thresholds) -> Watermarks:
        return Watermarks(source, tuple(map(kubelet.text_of, thresholds)), self._capped(thresholds).high_watermark)

    def _capped(self, thresholds: Thresholds) -> Limits:
        return kubelet.capped(self._limits, thresholds, _total_bytes(self._cache.root))


def _total_bytes(root: Path) -> int:
    found = os.statvfs(root)
    return found.f_blocks * found.f_frsize
