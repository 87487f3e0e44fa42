"""Makes a node have what its LocalModelNode says: fetches what is missing, pins what is wanted, drops what isn't."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from daemonset.backoff import Backoff
from daemonset.metrics import Metrics
from daemonset.own_right import brought_by_node
from daemonset.pins import Pins, namespace_of
from daemonset.shares import Share, given_by
from modelcache.abc.snapshot import Snapshot
from modelcache.abc.store import CLUSTERS, Lease, SnapshotInfo
from modelcache.cache import ModelCache
from modelcache.errors import Cancelled, ErrorCode, InUse, ModelCacheError, NotCached
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase, Progress
from modelcache.k8s.node import ModelReport, Object, State, WantedModel, times_of
from modelcache.patience import Cancellation
from modelcache.permission import Caller
from modelcache.prewarm import DEFAULT_JOBS
from modelcache.uri import parse_uri

logger = logging.getLogger(__name__)
AGAIN = Backoff(15.0, 600.0)
"""After a fetch that failed: KServe's jobs try about hourly, which is long for a secret that was forgotten."""
LEAST_REFRESH_S = 60.0
PIN_TRIES = 3
"""A snapshot may be evicted between its ensure and its pin; then it is ensured again."""
SWEEP_AGAIN_S = 60.0
STALE = "the origin could not be asked for a newer version: this is the last one that is known"


class CallerOf(Protocol):
    def __call__(self, model: WantedModel, cancel: Cancellation) -> Caller | None: ...


@dataclass(slots=True)
class _Kept:
    """One wanted model. Guarded by the keeper's lock.

    Attributes:
        due_s: monotonic time of the next look at it.
        told: what an earlier agent reported of it.
        begun_s: Unix time of the last look.
        size_bytes, file_count: of the version that is here.
        coming: digest of the version that is pinned next, and not reported yet.
    """

    wanted: WantedModel
    told: Object
    due_s: float
    report: ModelReport = field(default_factory=ModelReport)
    begun_s: float = 0.0
    size_bytes: int = 0
    file_count: int = 0
    coming: str | None = None
    running: bool = False
    failures: int = 0
    cancel: Cancellation = field(default_factory=Cancellation)


class Keeper:
    """A context manager: it works from its beginning to its end. Thread-safe.

    Nothing is dropped before `want` has said what is wanted: while the API server can't be asked, all pins stay.
    """

    def __init__(
        self,
        cache: ModelCache,
        metrics: Metrics,
        caller_of: CallerOf,
        changed: Callable[[], None],
        *,
        secrets_namespace: str | None = None,
    ) -> None:
        """
        Args:
            changed: called, from any thread, when a report is another one. Quick.
            secrets_namespace: in whose name `caller_of` has cluster caches with a credential fetched.
        """
        self._cache = cache
        self._pins = Pins(cache, secrets_namespace)
        self._metrics = metrics
        self._caller_of = caller_of
        self._tell_changed = changed
        self._changed = threading.Condition()
        self._kept: dict[str, _Kept] = {}
        self._given: dict[tuple[str, str | None], str] = {}
        self._sweep_due_s: float | None = None
        self._sweep_evicts = True
        self._said = False
        self._ending = False
        self._running = 0
        self._pinning = threading.Lock()
        self._pool = ThreadPoolExecutor(DEFAULT_JOBS, "agent prewarm")
        self._thread = threading.Thread(target=self._work, name="agent keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()
        self._thread.join()
        self._pool.shutdown()

    def end(self) -> None:
        """Begin nothing more, and break off what is under way. Idempotent, quick."""
        with self._changed:
            self._ending = True
            cancels = [each.cancel for each in self._kept.values()]
            self._changed.notify_all()
        for cancel in cancels:
            cancel.cancel()

    def want(self, models: Mapping[str, WantedModel], told: Mapping[str, Object], *, evict: bool = True) -> None:
        """From now on these, and no others.

        Args:
            told: what the status says of them.
            evict: what is no longer wanted goes at once; False: it may go when its room is needed.
        """
        with self._changed:
            gone = [key for key, kept in self._kept.items() if models.get(key) != kept.wanted]
            ended = [self._kept.pop(key).cancel for key in gone]
            for key, model in models.items():
                if key not in self._kept:
                    self._kept[key] = _Kept(model, told.get(key, {}), time.monotonic())
            self._given = given_by(models)
            if gone or not self._said:
                self._said = True
                self._sweep_due_s, self._sweep_evicts = time.monotonic(), evict
            self._changed.notify_all()
        for cancel in ended:
            cancel.cancel()
        self._tell_changed()

    def reports(self) -> dict[str, ModelReport]:
        """A copy, by key."""
        with self._changed:
            return {key: kept.report for key, kept in self._kept.items()}

    # -- what pods get of it ------------------------------------------------------------------------------------------

    def share(self, uri: str, namespace: str | None) -> Share | None:
        with self._changed:
            said, key = self._said, self._given.get((uri, namespace))
            kept = None if key is None else self._kept[key]
            if kept is not None and (report := kept.report).state is State.DOWNLOADED:
                stale = report.error_code == ErrorCode.ORIGIN_UNREACHABLE
                return Share(uri, kept.wanted, report.digest, kept.size_bytes, kept.file_count, stale)
        if not said:
            return self._share_of_pins([pin for pin in self._pins.all() if namespace_of(pin) == namespace], uri, None)
        if kept is None:
            return None
        return self._share_of_pins(self._pins.of(kept.wanted.key), uri, kept.wanted) or Share(uri, kept.wanted, None)  # its turn may come

    def caller_of(self, model: WantedModel, cancel: Cancellation) -> Caller | None:
        return self._caller_of(model, cancel)

    def _share_of_pins(self, pins: Sequence[Lease], uri: str, wanted: WantedModel | None) -> Share | None:
        """By what an agent before this one has pinned."""
        found = self._pins.first(pins, uri)
        return None if found is None else Share(uri, wanted, str(found[0].digest), found[0].size_bytes, found[0].file_count)

    # -- when ---------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._ending and (wait_s := self._idle_s()) > 0:
                    self._changed.wait(wait_s)
                if self._ending:
                    return
                sweep, evicts = self._sweep_due_s is not None and self._sweep_due_s <= time.monotonic(), self._sweep_evicts
                if sweep:
                    self._sweep_due_s = None
                begun = self._begun()
            if sweep:
                self._sweep(evicts)
            for kept in begun:
                self._pool.submit(self._run, kept)

    def _idle_s(self) -> float:
        """Until something is due; threading.TIMEOUT_MAX at most."""
        dues = [] if self._sweep_due_s is None else [self._sweep_due_s]
        if self._running < DEFAULT_JOBS:
            dues += [kept.due_s for kept in self._kept.values() if not kept.running]
        return min(dues, default=time.monotonic() + 3600.0) - time.monotonic()

    def _begun(self) -> list[_Kept]:
        now_s = time.monotonic()
        due = sorted((kept for kept in self._kept.values() if not kept.running and kept.due_s <= now_s), key=lambda kept: kept.due_s)
        begun = due[: DEFAULT_JOBS - self._running]
        for kept in begun:
            kept.running, kept.begun_s = True, time.time()
        self._running += len(begun)
        return begun

    # -- one model ----------------------------------------------------------------------------------------------------

    def _run(self, kept: _Kept) -> None:
        wait_s = LEAST_REFRESH_S
        try:
            self._recall(kept)
            snapshot = self._brought(kept)
            self._succeeded(kept, snapshot)
            kept.failures = 0
            wait_s = max(self._cache.config.refresh_s, LEAST_REFRESH_S) * random.uniform(1.0, 1.2)
        except Cancelled:
            logger.debug("no longer wanted: %s", kept.wanted.key)
        except ModelCacheError as error:
            kept.failures += 1
            wait_s = AGAIN.after(kept.failures, error.retry_after_s)
            self._failed(kept, str(error.code), str(error) + (f" ({error.hint})" if error.hint else ""))
            logger.warning("prewarming `%s` failed, again in %.0f s: %s", kept.wanted.key, wait_s, error, extra={"error": error})
        except Exception:
            kept.failures += 1
            wait_s = AGAIN.after(kept.failures)
            self._failed(kept, "internal", "the agent failed: its log says how")
            logger.exception("prewarming `%s` failed, again in %.0f s", kept.wanted.key, wait_s)
        finally:
            with self._changed:
                kept.running = False
                kept.due_s = time.monotonic() + wait_s
                self._running -= 1
                self._changed.notify_all()

    def _recall(self, kept: _Kept) -> None:
        """What an agent before this one brought is here, whatever comes of looking for a newer version."""
        if kept.report.state is State.DOWNLOADED:
            return
        uri = str(parse_uri(kept.wanted.uri)[0])
        found = self._pins.first(self._pins.of(kept.wanted.key), uri)  # and not what was wanted under this name before
        if found is None:
            return
        info, ref = found
        digest, size = str(info.digest), info.size_bytes
        times = times_of(kept.told) if kept.told.get("digest") == digest else (None, None)
        with self._changed:
            kept.size_bytes, kept.file_count = size, info.file_count
            kept.report = ModelReport(State.DOWNLOADED, size, size, 0, *times, revision=ref.revision, digest=digest)
        self._tell_changed()

    def _brought(self, kept: _Kept) -> Snapshot:
        """Here, and pinned."""
        model = kept.wanted
        caller = self._caller_of(model, kept.cancel)
        for _ in range(PIN_TRIES):
            with self._metrics.ensuring(model.uri, Priority.PREWARM) as counted:

                def look(progress: Progress, counted_look: Callable[[Progress], None] = counted.look) -> None:
                    counted_look(progress)
                    self._look(kept, progress)

                ask = partial(self._cache.ensure, model.uri, priority=Priority.PREWARM, cancel=kept.cancel, caller=caller)
                if self._is_believed(kept, caller):
                    snapshot = ask(progress=look)
                else:
                    snapshot = brought_by_node(self._cache, model.uri, ask, look, kept.cancel)
            try:
                self._pin(kept, snapshot)
            except NotCached:
                continue
            return snapshot
        raise NotCached(f"`{parse_uri(model.uri)[0]}` was evicted each time before it could be pinned", hint="make room: `modelcache df`")

    def _is_believed(self, kept: _Kept, caller: Caller | None) -> bool:
        """Whether what is here of it is a caller's, by its grants, or what the node itself has brought, and no tenant since then."""
        if caller is not None:
            return True
        had = self._cache.cached(kept.wanted.uri)
        own = kept.report.digest if kept.report.state is State.DOWNLOADED else None
        return own is not None and (had is None or str(had.snapshot.digest) == own)

    def _pin(self, kept: _Kept, snapshot: Snapshot) -> None:
        with self._pinning:  # or a sweep would take it for what is no longer wanted
            kept.coming = str(snapshot.digest)
            if not any(pin.manifest == snapshot.digest for pin in self._pins.of(kept.wanted.key)):
                self._cache.pin_for_cluster(kept.coming, key=kept.wanted.key)

    def _look(self, kept: _Kept, progress: Progress) -> None:
        with self._changed:
            report = kept.report
            if report.state is State.DOWNLOADED and progress.bytes_total == 0:
                return  # looking for a newer version: what is here is no less for it
            seen = replace(report, bytes_done=progress.bytes_done, bytes_total=progress.bytes_total)
            if progress.phase is not Phase.DONE:
                seen = replace(seen, bytes_per_s=int(progress.rate_bytes_per_s))
                if report.state is not State.DOWNLOADED and progress.phase is Phase.FETCHING:
                    seen = replace(seen, state=State.DOWNLOADING)
                if report.state is not State.DOWNLOADED:
                    seen = replace(seen, started_at_s=kept.begun_s)
            kept.report = seen
        if seen.state is not report.state:
            self._tell_changed()

    def _succeeded(self, kept: _Kept, snapshot: Snapshot) -> None:
        digest = str(snapshot.digest)
        info, revision = self._info(kept.wanted, snapshot)
        with self._changed:
            report = kept.report
            if info is not None:
                kept.size_bytes, kept.file_count = info.size_bytes, info.file_count
            times: tuple[float | None, float | None] = kept.begun_s, time.time()
            if report.digest == digest:
                times = report.started_at_s, report.finished_at_s
            elif report.digest is None and kept.told.get("digest") == digest:
                times = times_of(kept.told)
            kept.report = ModelReport(
                state=State.DOWNLOADED,
                bytes_done=report.bytes_total,
                bytes_total=report.bytes_total,
                started_at_s=times[0],
                finished_at_s=times[1],
                revision=revision,
                digest=digest,
                error_code=str(ErrorCode.ORIGIN_UNREACHABLE) if snapshot.stale else None,
                error_text=STALE if snapshot.stale else None,
            )
            self._sweep_due_s = time.monotonic()  # an older version of it, or its own pin if it came too late
        self._tell_changed()

    def _failed(self, kept: _Kept, code: str, text: str) -> None:
        """What is here stays usable: then the error is beside its state."""
        report = kept.report
        state = State.DOWNLOADED if report.state is State.DOWNLOADED and self._pinned(kept.wanted.key, report.digest) else State.ERROR
        with self._changed:
            kept.report = replace(kept.report, state=state, bytes_per_s=0, error_code=code, error_text=text)
        self._tell_changed()

    def _pinned(self, key: str, digest: str | None) -> bool:
        try:
            return any(str(pin.manifest) == digest for pin in self._pins.of(key))
        except ModelCacheError as error:
            logger.warning("the pins can't be read: %s", error, extra={"error": error})
            return True  # nothing is evicted either while they can't

    def _info(self, model: WantedModel, snapshot: Snapshot) -> tuple[SnapshotInfo | None, str | None]:
        """With the origin's name of this version."""
        uri = str(parse_uri(model.uri)[0])
        try:
            info = self._cache.find(str(snapshot.digest))
        except NotCached:  # removed by force between its pin and now
            return None, None
        return info, next((ref.revision for ref in info.refs if ref.key.uri == uri), None)

    # -- what is no longer wanted -------------------------------------------------------------------------------------

    def _sweep(self, evicts: bool) -> None:
        """End the pins that nobody wants any more, of older versions too."""
        try:
            for pin in self._pins.all():
                with self._pinning:
                    if not self._stays(pin):
                        self._drop(pin, evicts)
        except ModelCacheError as error:
            logger.warning("what is no longer wanted can't be dropped, again in %.0f s: %s", SWEEP_AGAIN_S, error, extra={"error": error})
            with self._changed:
                if self._sweep_due_s is None:
                    self._sweep_due_s = time.monotonic() + SWEEP_AGAIN_S

    def _stays(self, pin: Lease) -> bool:
        with self._changed:
            kept = self._kept.get(pin.holder.removeprefix(CLUSTERS))
            return kept is not None and (
                kept.report.state is not State.DOWNLOADED or str(pin.manifest) in (kept.report.digest, kept.coming)
            )

    def _drop(self, pin: Lease, evicts: bool) -> None:
        name = str(pin.manifest)
        try:
            self._cache.unpin(name, holder=pin.holder)
            if evicts:
                evicted = self._cache.evict(name)
                self._metrics.evicted(evicted.freed_bytes)
                logger.info("dropped: %s", name, extra={"event": "dropped", "fields": {"digest": name, "freed_bytes": evicted.freed_bytes}})
        except InUse:
            logger.info("no longer wanted, and in use: %s", name)
        except NotCached:
            logger.debug("no longer wanted, and gone: %s", name)
