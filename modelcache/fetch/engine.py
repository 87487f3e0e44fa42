"""The fetch engine: threads that bring the missing chunks of many ingests in, most wanted first, verified on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from modelcache.abc.source import Origin
from modelcache.digest import Digest
from modelcache.fetch.buffers import Buffer, BufferPool
from modelcache.fetch.concurrency import Concurrencies, ConcurrencyBounds
from modelcache.fetch.fetch import Fetch, Surroundings
from modelcache.fetch.lookout import Lookout
from modelcache.fetch.plan import Priority, Span
from modelcache.fetch.received import Received
from modelcache.fetch.request import FetchRequest
from modelcache.fetch.run import Run
from modelcache.fetch.shared import SharedFiles
from modelcache.fetch.turns import Turns
from modelcache.fetch.underway import Underway
from modelcache.patience import Condition

IDLE_S = 5.0
"""A worker without work ends after this, and its buffer's memory goes back."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Attributes:
    concurrency: requests in flight; of each origin within these bounds, of all together no more than `most`.
    spare_buffers: chunks that may wait in memory for the hash to reach them, besides one in the hands of each worker.
    """

    concurrency: ConcurrencyBounds
    spare_buffers: int


@dataclass(frozen=True, slots=True)
class Queued:
    """A fetch that has something left. `moving`: it has requests in flight just now."""

    priority: Priority
    moving: bool


class FetchEngine:
    """Runs fetches. Thread-safe; one per process is meant.

    Between two chunks a worker looks whether a fetch of higher priority waits, or moves bytes from the same origin (or on the same
    line), and if so leaves its request; one that is long at its chunk is taken out of it. Someone who waits has the bandwidth soon,
    and alone. Fetches of one priority share: next is the one with the fewest requests in flight, of those the one that has waited
    longest for its turn.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._pool = BufferPool(limits.spare_buffers)
        self._concurrency = Concurrencies(limits.concurrency)
        self._changed = Condition()
        self._fetches: list[Fetch] = []
        self._shared = SharedFiles()
        self.turns = Turns()
        self.incoming = Received()
        self.one_line: Callable[[], bool] = lambda: False  # whether what all origins give together is bounded
        self._underway = Underway()
        self._workers: set[threading.Thread] = set()
        self._served = 0
        self._closed = False
        self._lookout = Lookout(self._changed, lambda: tuple(self._fetches), self._call)

    def start(self, request: FetchRequest) -> Fetch:
        """Begin to fetch; returns at once. Follow with `Fetch.wait`, which tells what went wrong."""
        known = request.known()
        fetch = Fetch(
            request, Surroundings(self._pool, self._changed, self._shared.completed, self._lookout.begin, self._make_way, self._ended)
        )
        with self._changed:
            if self._closed:
                raise RuntimeError("the fetch engine is closed")
            if fetch.ended:
                self.incoming.tell_reused(fetch.uri, fetch.meter.reused_bytes)
                return fetch
            self._fetches.append(fetch)
            published = self._share(fetch, known)
        for file, digest in published:
            fetch.link(file, digest)
        fetch.begin()
        try:
            with self._changed:
                self._call()
        except RuntimeError as error:  # no thread to be had, and none here
            fetch.fail(error)
        return fetch

    def hurry(self, fetch: Fetch, priority: Priority) -> None:
        """Of those who wait for this fetch now, this is the highest priority."""
        with self._changed:
            before = fetch.rank.own
            if priority != before:
                fetch.rank.own = priority
                self._shared.hurried(fetch, before)
                self._changed.notify_all()

    @contextmanager
    def planning(self) -> Iterator[None]:
        """From before the store is asked what it has until the fetch of the rest is started. What is published in between is
        linked, not fetched: it was not here at the look, and nobody brings it any more at the start."""
        with self._changed:
            self._shared.planning_begins()
        try:
            yield
        finally:
            with self._changed:
                self._shared.planning_ends()

    def _share(self, fetch: Fetch, known: Mapping[int, Digest]) -> list[tuple[int, Digest]]:
        """Follow who brings files of this fetch already; what was published since it was planned."""
        awaited: dict[Fetch, list[int]] = {}
        published = []
        for file in fetch.files_to_share:
            leader = self._shared.join(fetch, file)
            digest = self._shared.published(fetch, file) or known.get(file)
            if leader is not None:
                fetch.follow(file)
                awaited.setdefault(leader[0], []).append(leader[1])
            elif digest is not None:
                fetch.follow(file)
                published.append((file, digest))
            elif not fetch.incoming(file).claimed:
                fetch.lead(file)
        for other, files in awaited.items():
            if other is not fetch and fetch.rank.own <= other.priority:
                other.prefer(files)
        return published

    def _ended(self, fetch: Fetch) -> None:
        """A fetch is over: what others waited for and did not get from it, they bring themselves."""
        if fetch in self._fetches:
            self._fetches.remove(fetch)
        if fetch.succeeded:
            self.incoming.tell_reused(fetch.uri, fetch.meter.reused_bytes)
        for leader, number in self._shared.left(fetch):
            leader.lead(number)
        if all(other.origin != fetch.origin for other in self._fetches):
            self._concurrency.idle(fetch.origin)
        self._changed.notify_all()

    def throttled(self, origin: Origin) -> None:
        """This origin asked to slow down."""
        with self._changed:
            self._concurrency.throttled(str(origin), time.monotonic())

    def requests_limit(self, origin: Origin) -> int:
        """Requests in flight to this origin that are allowed just now."""
        with self._changed:
            return self._concurrency.limit(str(origin))

    def queue(self) -> list[Queued]:
        """Every fetch that has something left to fetch."""
        with self._changed:
            return [Queued(fetch.priority, fetch.active > 0) for fetch in self._fetches]

    def close(self) -> None:
        """Cancel every fetch and end the workers; waits for both. Idempotent."""
        with self._changed:
            self._closed = True
            fetches, workers = list(self._fetches), list(self._workers)
            self._changed.notify_all()
        for fetch in fetches:
            fetch.cancel()
        for worker in workers:
            worker.join()
        self._lookout.close()
        self._pool.trim()

    def _call(self) -> None:
        """There may be something to do: for who waits, and for as many workers as requests are allowed. Raises as `_hire`."""
        self._hire()
        self._changed.notify_all()

    def _hire(self) -> None:
        """Have as many workers as requests are allowed. Raises RuntimeError if there is no thread at all."""
        useful = self._concurrency.useful(fetch.origin for fetch in self._fetches)
        while len(self._workers) < useful and not self._closed:
            worker = threading.Thread(target=self._work, name=f"fetch-{len(self._workers)}", daemon=True)
            try:
                worker.start()
            except RuntimeError:
                if not self._workers:
                    raise
                break  # this process may have no more threads: fewer do it, too
            self._workers.add(worker)

    def _work(self) -> None:
        buffer: Buffer | None = None
        while (taken := self._take()) is not None:
            buffer = self._perform(*taken, buffer)
            del taken  # an idle worker keeps no ended fetch alive

    def _take(self) -> tuple[Fetch, Span] | None:
        """The next span of the most wanted fetch; None when this worker should end, and then it counts no more."""
        with self._changed:
            idle_until_s = time.monotonic() + IDLE_S
            while not self._closed:
                taken = self._next()
                if taken is not None:
                    return taken
                left_s = idle_until_s - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            self._workers.discard(threading.current_thread())
            if not self._workers:
                self._pool.trim()
            return None

    def _next(self) -> tuple[Fetch, Span] | None:
        if self._concurrency.full():
            return None
        now_s = time.monotonic()
        for fetch in sorted(self._fetches, key=lambda item: (item.priority, item.active, item.served)):
            if not self._concurrency.open(fetch.origin) or self._underway.outranks(fetch, now_s, wherever=self.one_line()):
                continue
            span = fetch.take(self._concurrency.limit(fetch.origin))
            if span is not None:
                self._concurrency.began(fetch.origin)
                self._served += 1
                fetch.served = self._served
                if any(other.left for other in self._fetches):
                    self._hire()  # workers that had nothing to do may have ended meanwhile
                return fetch, span
        return None

    def _perform(self, fetch: Fetch, span: Span, buffer: Buffer | None) -> Buffer | None:
        run = Run(fetch, span, buffer, self)
        error: BaseException | None = None
        with self._changed:
            self._underway.began(run)
        try:
            fetch.context.copy().run(run.perform)
        except BaseException as caught:  # whatever it was, the fetch must end with it
            error = caught
        with self._changed:
            self._concurrency.ended(fetch.origin)
            self._underway.ended(run)
            if not self._underway.busy(fetch.origin):
                self._changed.notify_all()  # who was outranked goes on
        fetch.ended_span(span, run.done, error)
        return run.buffer

    def _make_way(self, fetch: Fetch) -> None:
        """Somebody waits for this fetch: those who go behind leave their requests; and if it has none, and can't have one until another
        ends, one that gets nowhere does."""
        now_s = time.monotonic()
        with self._changed:
            left = self._keep_way_free(fetch, now_s)
            if not fetch.active and fetch.left:
                full = self._concurrency.full()
                if full or not self._concurrency.open(fetch.origin):
                    run = self._underway.give_up(fetch, None if full else fetch.origin, now_s)
                    left += [run] if run is not None else []
                elif not self._underway.outranks(fetch, now_s, wherever=self.one_line()):
                    self._call()  # who went before it moves no more
        for run in left:
            run.leave()

    def _keep_way_free(self, fetch: Fetch, now_s: float) -> list[Run]:
        """The requests to leave that this fetch goes before; `outranked` says the same of each, at the end of a chunk."""
        moves = self._underway.moves(fetch, now_s)
        if not moves and not fetch.left:
            return []
        wherever = (moves and self.one_line()) or (fetch.left and self._concurrency.open(fetch.origin))
        return self._underway.behind(fetch, now_s, wherever=wherever)

    def received(self, fetch: Fetch, count: int) -> None:
        """`count` bytes came from the origin of this fetch, kept or not."""
        self.incoming.tell(fetch.uri, fetch.priority, count)

    def moved(self, fetch: Fetch, count: int) -> None:
        """`count` bytes came from the origin of this fetch."""
        with self._changed:
            if self._concurrency.moved(fetch.origin, count, time.monotonic()):
                self._call()

    def overtaken(self, fetch: Fetch) -> bool:
        """Whether a fetch that goes before this one moves bytes from its origin."""
        with self._changed:
            return self._underway.outranks(fetch, time.monotonic(), wherever=self.one_line())

    def outranked(self, fetch: Fetch) -> bool:
        """Whether a fetch that goes before this one could use its request, or moves bytes from its origin."""
        with self._changed:
            return self._underway.outranks(fetch, time.monotonic(), wherever=self.one_line()) or any(
                other.priority < fetch.priority and other.left and (other.origin == fetch.origin or self._concurrency.open(other.origin))
                for other in self._fetches
            )
