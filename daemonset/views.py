"""What names models: the list behind the page, and a series of metrics per model. For who may see it (docs/agent.md)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from daemonset.room import USAGE_AGE_S, Aged
from modelcache import __version__
from modelcache.abc.store import LeaseKind, SnapshotInfo
from modelcache.agent.log import LogEntry
from modelcache.cache import ModelCache
from modelcache.cli import documents

LIST_AGE_S = 2.0
"""What is kept is looked at anew at most so often: of 100,000 blobs it takes 2 s."""
EVENTS = 100
SHOWN = 2000
"""Models in a list, the most recently used."""
PROGRESS = ("uri", "bytes_total", "bytes_done", "rate_bytes_per_s", "eta_s", "elapsed_s", "waiting")


@dataclass(frozen=True, slots=True)
class Life:
    """Of the agent itself. `draining`: it takes no new work."""

    started_at_s: float
    draining: Callable[[], bool]
    recent: Callable[[], Sequence[LogEntry]]


class Views:
    """Thread-safe."""

    def __init__(self, cache: ModelCache, life: Life) -> None:
        self._cache = cache
        self._life = life
        self._kept: Aged[list[SnapshotInfo]] = Aged(cache.list, LIST_AGE_S)
        self._usage = Aged(cache.usage, USAGE_AGE_S)
        self.registry = CollectorRegistry()
        self.registry.register(_OfModels(self._models, cache))

    def document(self) -> dict[str, object]:
        """What is cached, what moves and how fast, who holds it, and the room. Raises ModelCacheError."""
        kept = self._kept.value()
        return {
            "now_s": time.time(),
            "version": __version__,
            "root": str(self._cache.config.root),
            "started_at_s": self._life.started_at_s,
            "draining": self._life.draining(),
            "room": documents.of_usage(self._usage.value(), self._cache.config.root),
            "moving": [{"phase": each.phase.value, **{name: getattr(each, name) for name in PROGRESS}} for each in self._cache.moving()],
            "snapshots": [_of(info) for info in kept[:SHOWN]],
            "snapshots_left_out": max(0, len(kept) - SHOWN),
            "events": [entry.as_dict() for entry in self._life.recent() if entry.event is not None][-EVENTS:],
        }

    def _models(self) -> Sequence[SnapshotInfo]:
        return self._kept.value()[:SHOWN]


def _of(info: SnapshotInfo) -> dict[str, object]:
    return {
        "digest": str(info.digest),
        "uris": [ref.key.uri for ref in info.refs],
        "size_bytes": info.size_bytes,
        "files": info.file_count,
        "last_used_at_s": info.last_used_at_s,
        "holders": [f"{lease.kind} {lease.holder}" for lease in info.leases],
    }


class _OfModels(Collector):
    """A series per model and digest; of pods only how many hold it."""

    def __init__(self, models: Callable[[], Sequence[SnapshotInfo]], cache: ModelCache) -> None:
        self._models = models
        self._cache = cache

    def collect(self) -> Iterable[Metric]:
        size = _gauge("model_size_bytes", "Of the files of a model.", "model", "digest")
        used = _gauge("model_used_timestamp_seconds", "When it was last used (Unix time).", "model", "digest")
        holds = _gauge("model_holds", "Living holds on it.", "model", "digest", "kind")
        for info in self._models():
            for model in dict.fromkeys(ref.key.uri for ref in info.refs):
                labels = (model, str(info.digest))
                size.add_metric(labels, info.size_bytes)
                used.add_metric(labels, info.last_used_at_s)
                for kind in LeaseKind:
                    holds.add_metric((*labels, kind.value), sum(lease.kind is kind for lease in info.leases))
        done = _gauge("model_fetched_bytes", "Of a model on its way, what is here.", "model")
        total = _gauge("model_wanted_bytes", "Of a model on its way, all of it.", "model")
        rate = _gauge("model_rate_bytes_per_second", "Of a model on its way.", "model")
        for each in {each.uri: each for each in self._cache.moving()}.values():
            done.add_metric((each.uri,), each.bytes_done)
            total.add_metric((each.uri,), each.bytes_total)
            rate.add_metric((each.uri,), each.rate_bytes_per_s)
        return size, used, holds, done, total, rate

    def describe(self) -> Iterable[Metric]:
        return ()


def _gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"modelcache_{name}", meaning, labels=labels)
