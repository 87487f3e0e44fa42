"""What the agent counts, for Prometheus. No URI, namespace or name of a pod is in it (docs/agent.md, Metrics)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from modelcache import __version__
from modelcache.abc.store import LeaseKind, Usage
from modelcache.cache import ModelCache
from modelcache.errors import ModelCacheError
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Progress
from modelcache.uri import parse_uri

USAGE_AGE_S = 15.0
"""Where the room went is counted anew at most so often: it takes 1.3 s for 100,000 blobs."""
SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200)
KNOWN_SCHEMES = frozenset({"s3", "gs", "hf", "http", "https", "file", "pvc"})
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


class Metrics:
    """The counters of one agent. Thread-safe."""

    def __init__(self, cache: ModelCache) -> None:
        self.registry = CollectorRegistry()
        self._ensures = Counter(
            "modelcache_ensures",
            "Models asked for, by how it ended: hit, fetched, or the error's code.",
            ("outcome", "priority"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "modelcache_ensure_seconds", "From the question to the answer.", ("outcome",), buckets=SECONDS, registry=self.registry
        )
        self._fetched = Counter(
            "modelcache_fetched_bytes", "Bytes that came over the network.", ("scheme", "priority"), registry=self.registry
        )
        self._reused = Counter(
            "modelcache_reused_bytes", "Bytes that were here before they were asked for.", ("scheme",), registry=self.registry
        )
        self._waiting = Gauge("modelcache_ensures_under_way", "Calls that wait for a model.", ("priority",), registry=self.registry)
        self._damaged = Counter("modelcache_damages", "Damaged blobs and records that were found.", registry=self.registry)
        self._read_back = Counter("modelcache_read_back_bytes", "Bytes read back from the disk and compared.", registry=self.registry)
        self._repairs = Counter(
            "modelcache_repairs", "Damaged contents that were put right, or were not.", ("outcome",), registry=self.registry
        )
        self._evicted = Counter("modelcache_evicted_bytes", "Bytes freed by evictions on request.", registry=self.registry)
        build = Gauge("modelcache_agent_info", "The agent's version.", ("version",), registry=self.registry)
        build.labels(__version__).set(1)
        self.registry.register(_Room(cache))
        cache.incoming.listen(self._received)

    def ensuring(self, uri: str, priority: Priority) -> Ensuring:
        """One question for a model, from its beginning. A context manager."""
        return Ensuring(self, uri, priority.name.lower())

    def _received(self, uri: str, priority: Priority, count: int) -> None:
        scheme = uri.partition(":")[0]  # canonical: there is one
        self._fetched.labels(scheme if scheme in KNOWN_SCHEMES else "other", priority.name.lower()).inc(count)

    def verified(self, bytes_read: int, damages: int) -> None:
        self._read_back.inc(bytes_read)
        self._damaged.inc(damages)

    def repaired(self, repaired: int, failed: int) -> None:
        self._repairs.labels("repaired").inc(repaired)
        self._repairs.labels("failed").inc(failed)

    def evicted(self, freed_bytes: int) -> None:
        self._evicted.inc(freed_bytes)


class Ensuring:
    """Counts one question for a model when it ends."""

    def __init__(self, metrics: Metrics, uri: str, priority: str) -> None:
        self._metrics = metrics
        self._uri = uri
        self._priority = priority
        self._started_s = time.monotonic()
        self._last: Progress | None = None
        self._counts = True

    def look(self, progress: Progress) -> None:
        self._last = progress

    def leave_out(self) -> None:
        """It came to nothing, and is asked again in another way."""
        self._counts = False

    def __enter__(self) -> Ensuring:
        self._metrics._waiting.labels(self._priority).inc()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        metrics = self._metrics
        metrics._waiting.labels(self._priority).dec()
        if not self._counts:
            return
        if error is not None:
            outcome = str(error.code) if isinstance(error, ModelCacheError) else "internal"
        else:
            outcome = "hit" if self._last is not None and self._last.hit else "fetched"
        metrics._ensures.labels(outcome, self._priority).inc()
        metrics._seconds.labels(outcome).observe(time.monotonic() - self._started_s)
        if self._last is not None and not self._last.hit:
            metrics._reused.labels(_scheme(self._uri)).inc(self._last.bytes_reused)


class _Room(Collector):
    """Room and holds as they are when somebody looks."""

    def __init__(self, cache: ModelCache) -> None:
        self._cache = cache
        self._usage = _Aged(cache.usage)

    def collect(self) -> Iterable[Metric]:
        usage = self._usage.value()
        for name, meaning in ROOM.items():
            yield GaugeMetricFamily(f"modelcache_store_{name}", meaning, value=getattr(usage, name))
        leases = GaugeMetricFamily("modelcache_leases", "Living holds.", labels=("kind",))
        held = [lease.kind for lease in self._cache.leases()]
        for kind in LeaseKind:
            leases.add_metric((kind.value,), held.count(kind))
        yield leases
        denied = GaugeMetricFamily("modelcache_denials", "Callers turned away since the start, by error code.", labels=("code",))
        for code, count in sorted(self._cache.denials.by_code.items()):
            denied.add_metric((code,), count)
        yield denied

    def describe(self) -> Iterable[Metric]:
        return ()  # else the registry collects once to learn the names


class _Aged:
    """A value that is made anew when it is older than USAGE_AGE_S, by one at a time."""

    def __init__(self, make: Callable[[], Usage]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: tuple[float, Usage] | None = None

    def value(self) -> Usage:
        with self._lock:
            if self._made is None or time.monotonic() - self._made[0] > USAGE_AGE_S:
                self._made = time.monotonic(), self._make()
            return self._made[1]


def _scheme(uri: str) -> str:
    """Of a URI that somebody sent: only those that are known, so that nobody makes up series."""
    try:
        scheme = parse_uri(uri)[0].scheme
    except ModelCacheError:
        return "none"
    return scheme if scheme in KNOWN_SCHEMES else "other"
