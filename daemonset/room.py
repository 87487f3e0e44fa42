"""Room, holds, queue and evictions as they are when somebody asks for the metrics."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from modelcache.abc.store import LeaseKind
from modelcache.cache import ModelCache
from modelcache.errors import ModelCacheError
from modelcache.fetch.plan import Priority

logger = logging.getLogger(__name__)
T = TypeVar("T")
REQUEST, ROOM_MADE = "request", "room"
"""Why something was evicted."""
USAGE_AGE_S = 15.0
"""Where the room went is counted anew at most so often: it takes 1.3 s for 100,000 blobs."""
ROOM = {
    "snapshots": "Models that are here whole.",
    "content_bytes": "Of all blobs, each content once.",
    "ingest_bytes": "Of what is on its way, or was when a fetch ended.",
    "quarantine_bytes": "Of damaged blobs that are kept aside.",
    "evictable_bytes": "That evicting everything that nobody holds would free.",
    "leased_bytes": "Held by leases.",
    "pinned_bytes": "Held by pins.",
    "free_bytes": "Of the file system.",
    "available_bytes": "That a fetch could get without evicting.",
}


class RoomCollector(Collector):
    """Asked at each scrape. Thread-safe."""

    def __init__(self, cache: ModelCache) -> None:
        self._cache = cache
        self._usage = Aged(cache.usage, USAGE_AGE_S)
        self._lock = threading.Lock()
        self._told: dict[str, Counter[str]] = {REQUEST: Counter(), ROOM_MADE: Counter()}

    def evicted(self, freed_bytes: int, why: str) -> None:
        """What the store itself evicts for what comes is not told: it counts that."""
        with self._lock:
            self._told[why].update(snapshots=1, freed_bytes=freed_bytes)

    def collect(self) -> Iterable[Metric]:
        try:
            yield from list(self._of_store())
        except ModelCacheError as error:  # the counters are wanted all the more; `/readyz` says what is wrong
            logger.debug("the store can't be looked at: %s", error)
        denied = CounterMetricFamily("modelcache_denials", "Callers turned away, by error code.", labels=("code",))
        for code, count in sorted(self._cache.denials.by_code.items()):
            denied.add_metric((code,), count)
        yield denied
        yield self._queue()
        yield from self._evictions()

    def _of_store(self) -> Iterable[Metric]:
        """Raises StoreError."""
        usage = self._usage.value()
        for name, meaning in ROOM.items():
            yield GaugeMetricFamily(f"modelcache_store_{name}", meaning, value=getattr(usage, name))
        leases = GaugeMetricFamily("modelcache_leases", "Living holds.", labels=("kind",))
        held = [lease.kind for lease in self._cache.leases()]
        for kind in LeaseKind:
            leases.add_metric((kind.value,), held.count(kind))
        yield leases

    def _queue(self) -> Metric:
        queue = GaugeMetricFamily("modelcache_fetches", "Fetches, by whether they have requests in flight.", labels=("state", "priority"))
        found = self._cache.queue()
        for priority in Priority:
            of_one = [each.moving for each in found if each.priority is priority]
            queue.add_metric(("moving", priority.name.lower()), sum(of_one))
            queue.add_metric(("queued", priority.name.lower()), len(of_one) - sum(of_one))
        return queue

    def _evictions(self) -> Iterable[Metric]:
        made = self._cache.made_room
        with self._lock:
            requested, room = self._told[REQUEST].copy(), self._told[ROOM_MADE].copy()
        for name, meaning, of_requests, for_room in (
            ("evictions", "Snapshots that were evicted.", requested["snapshots"], room["snapshots"] + made.snapshots),
            ("evicted_bytes", "Freed by that.", requested["freed_bytes"], room["freed_bytes"] + made.freed_bytes),
        ):
            family = CounterMetricFamily(f"modelcache_{name}", meaning, labels=("why",))
            family.add_metric((REQUEST,), of_requests)
            family.add_metric((ROOM_MADE,), for_room)
            yield family

    def describe(self) -> Iterable[Metric]:
        return ()  # else the registry collects once to learn the names


class Aged(Generic[T]):
    """A value that is made anew when it is older than `age_s`, by one at a time."""

    def __init__(self, make: Callable[[], T], age_s: float) -> None:
        self._make = make
        self._age_s = age_s
        self._lock = threading.Lock()
        self._made: tuple[float, T] | None = None

    def value(self) -> T:
        with self._lock:
            if self._made is None or time.monotonic() - self._made[0] > self._age_s:
                self._made = time.monotonic(), self._make()
            return self._made[1]
