"""What the agent counts, for Prometheus. No URI, namespace or name of a pod is in it (docs/agent.md, Metrics)."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from daemonset.ensuring import Ensuring, fields_of, outcome_of, tell_outcome
from daemonset.room import REQUEST, RoomCollector
from daemonset.spans import NO_SPANS, Spans
from modelcache import __version__
from modelcache.cache import ModelCache
from modelcache.errors import ErrorCode, ModelCacheError
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase
from modelcache.permission import Caller
from modelcache.prewarm import PrewarmOutcome
from modelcache.telemetry import about
from modelcache.uri import parse_uri

SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200)
KNOWN_SCHEMES = frozenset({"s3", "gs", "hf", "http", "https", "file", "pvc"})


class Metrics:
    """The counters of one agent. Thread-safe."""

    def __init__(self, cache: ModelCache, spans: Spans = NO_SPANS) -> None:
        self.registry = CollectorRegistry()
        self.spans = spans
        self.ensures = self._counter(
            "ensures", "Models asked for, by how it ended: hit, fetched, or the error's code.", "outcome", "priority"
        )
        self.seconds = self._histogram("ensure_seconds", "From the question to the answer.", "outcome")
        self.waiting = Gauge("modelcache_ensures_under_way", "Calls that wait for a model.", ("priority",), registry=self.registry)
        self._fetched = self._counter("fetched_bytes", "Bytes that came over the network.", "scheme", "priority")
        self._reused = self._counter("reused_bytes", "Bytes that a fetch did not have to bring.", "scheme")
        self._phases = self._histogram("phase_seconds", "What asking an origin took, by phase.", "phase")
        self._refusals = self._counter("refusals", "Calls that ended with an error.", "code")
        self._scrubs = self._counter("scrubs", "Parts of the disk that were read back in the background.", "outcome")
        self._scrubbed_at_s = Gauge(
            "modelcache_scrub_timestamp_seconds", "When the last of them ended (Unix time).", registry=self.registry
        )
        self._read_back = self._counter("read_back_bytes", "Bytes read back from the disk and compared.")
        self._damages = self._counter("damages", "Damaged blobs and records that were found.")
        self._repairs = self._counter("repairs", "Damaged contents that were put right, or were not.", "outcome")
        Gauge("modelcache_agent_info", "The agent's version.", ("version",), registry=self.registry).labels(__version__).set(1)
        self._room = RoomCollector(cache)
        self.registry.register(self._room)
        cache.incoming.listen(self)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"modelcache_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, *labels: str) -> Histogram:
        return Histogram(f"modelcache_{name}", meaning, labels, buckets=SECONDS, registry=self.registry)

    # -- questions --------------------------------------------------------------------------------------------------

    def ensuring(self, uri: str, priority: Priority, caller: Caller | None = None) -> Ensuring:
        """One question for a model, from its beginning. A context manager. `caller`: for whom it is asked, which the log tells."""
        return Ensuring(self, uri, priority, caller)

    def prewarmed(self, each: PrewarmOutcome) -> None:
        """One model of a list, which counts as a question of its own."""
        outcome, priority = outcome_of(each.error, each.progress), Priority.PREWARM.name.lower()
        self.ensures.labels(outcome, priority).inc()
        elapsed_s = 0.0 if each.progress is None else each.progress.elapsed_s
        if each.progress is not None:
            self.seconds.labels(outcome).observe(elapsed_s)
        with about(model=each.uri):
            tell_outcome(each.error, outcome, fields_of(priority, elapsed_s, each.progress))

    def refused(self, code: ErrorCode) -> None:
        self._refusals.labels(str(code)).inc()

    # -- `Listener` of what fetches do -------------------------------------------------------------------------------

    def came(self, uri: str, priority: Priority, count: int) -> None:
        self._fetched.labels(known_scheme(uri), priority.name.lower()).inc(count)

    def was_here(self, uri: str, count: int) -> None:
        self._reused.labels(known_scheme(uri)).inc(count)

    def spent(self, uri: str, phase: Phase, elapsed_s: float) -> None:
        self._phases.labels(phase.value).observe(elapsed_s)
        self.spans.ended(phase.value, elapsed_s, {"modelcache.model": uri})

    # -- upkeep -----------------------------------------------------------------------------------------------------

    def scrubbed(self, outcome: str) -> None:
        """`ok`, `damaged`, or the error's code."""
        self._scrubs.labels(outcome).inc()
        self._scrubbed_at_s.set(time.time())

    def verified(self, bytes_read: int, damages: int) -> None:
        self._read_back.inc(bytes_read)
        self._damages.inc(damages)

    def repaired(self, repaired: int, failed: int) -> None:
        self._repairs.labels("repaired").inc(repaired)
        self._repairs.labels("failed").inc(failed)

    def evicted(self, freed_bytes: int, why: str = REQUEST) -> None:
        """A snapshot."""
        self._room.evicted(freed_bytes, why)


def known_scheme(uri: str) -> str:
    """Of a URI that somebody sent: only those that are known, so that nobody makes up series."""
    try:
        scheme = parse_uri(uri)[0].scheme
    except ModelCacheError:
        return "none"
    return scheme if scheme in KNOWN_SCHEMES else "other"
