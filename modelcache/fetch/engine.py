"""The fetch engine: threads that bring the missing chunks of many ingests in, most wanted first, verified on the way."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import xxhash

from modelcache.abc.source import Body
from modelcache.abc.store import IncomingFile
from modelcache.chunks import chunk_range
from modelcache.digest import Digest
from modelcache.fetch.buffers import Buffer, BufferPool
from modelcache.fetch.concurrency import Concurrency, ConcurrencyBounds
from modelcache.fetch.fetch import Fetch, FetchRequest
from modelcache.fetch.plan import Span, Work
from modelcache.fetch.shared import SharedFiles
from modelcache.ranges import ByteRange

IDLE_S = 5.0
"""A worker without work ends after this, and its buffer's memory goes back."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Attributes:
    concurrency: requests in flight.
    spare_buffers: chunks that may wait in memory for the hash to reach them, besides one in the hands of each worker.
    """

    concurrency: ConcurrencyBounds
    spare_buffers: int


class FetchEngine:
    """Runs fetches. Thread-safe; one per process is meant.

    Between two chunks a worker looks whether a fetch of higher priority waits and, if so, leaves its request for it: someone who
    waits has the bandwidth within a chunk. Fetches of one priority share: the one with the fewest requests in flight is next.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._pool = BufferPool(limits.spare_buffers)
        self._concurrency = Concurrency(limits.concurrency)
        self._changed = threading.Condition()
        self._fetches: list[Fetch] = []
        self._shared = SharedFiles()
        self._workers: set[threading.Thread] = set()
        self._busy = 0
        self._closed = False

    def start(self, request: FetchRequest) -> Fetch:
        """Begin to fetch; returns at once. Follow with `Fetch.wait`."""
        fetch = Fetch(request, self._pool, self._changed, self._completed)
        with self._changed:
            if self._closed:
                raise RuntimeError("the fetch engine is closed")
            for file in sorted(fetch.files_left):
                if not self._shared.join(fetch, file):
                    fetch.follow(file)
            self._fetches.append(fetch)
        fetch.begin()
        self._hire()
        return fetch

    def _completed(self, fetch: Fetch, file: int, digest: Digest) -> None:
        with self._changed:
            followers = self._shared.completed(fetch, file)
        for follower, number in followers:
            follower.link(number, digest)

    def _hand_over(self) -> None:
        """Fetches that ended early leave what others waited for; the engine holds the lock."""
        for fetch in [fetch for fetch in self._fetches if fetch.ended]:
            self._fetches.remove(fetch)
            for leader, number in self._shared.left(fetch):
                leader.lead(number)

    def throttled(self) -> None:
        """An origin asked to slow down."""
        with self._changed:
            self._concurrency.throttled()

    @property
    def requests_limit(self) -> int:
        """Requests in flight that are allowed just now."""
        return self._concurrency.limit

    def close(self) -> None:
        """Cancel every fetch and end the workers; waits for both."""
        with self._changed:
            self._closed = True
            fetches, workers = list(self._fetches), list(self._workers)
            self._changed.notify_all()
        for fetch in fetches:
            fetch.cancel()
        for worker in workers:
            worker.join()
        self._pool.trim()

    def _hire(self) -> None:
        """Have as many workers as requests are allowed."""
        with self._changed:
            while len(self._workers) < self._concurrency.limit and not self._closed:
                worker = threading.Thread(target=self._work, name=f"fetch-{len(self._workers)}", daemon=True)
                self._workers.add(worker)
                worker.start()
            self._changed.notify_all()

    def _work(self) -> None:
        buffer = Buffer()
        try:
            while (taken := self._take()) is not None:
                fetch, span = taken
                buffer = self._perform(fetch, span, buffer)
        finally:
            with self._changed:
                self._workers.discard(threading.current_thread())

    def _take(self) -> tuple[Fetch, Span] | None:
        """The next span of the most wanted fetch; None when this worker should end."""
        with self._changed:
            idle_until_s = time.monotonic() + IDLE_S
            while not self._closed:
                self._hand_over()
                if self._busy < self._concurrency.limit:
                    for fetch in sorted(self._fetches, key=lambda item: (item.priority, item.active)):
                        span = fetch.take(self._concurrency.limit)
                        if span is not None:
                            self._busy += 1
                            return fetch, span
                left_s = idle_until_s - time.monotonic()
                if left_s <= 0:
                    self._workers.discard(threading.current_thread())
                    return None
                self._changed.wait(left_s)
            return None

    def _perform(self, fetch: Fetch, span: Span, buffer: Buffer) -> Buffer:
        run = _Run(self, fetch, span, buffer)
        error: BaseException | None = None
        try:
            run.check() if span.work is Work.CHECK else run.fetch()
        except Exception as caught:
            error = caught
        with self._changed:
            self._busy -= 1
        fetch.ended_span(span, run.done, error)
        return run.buffer

    def moved(self, count: int) -> None:
        with self._changed:
            before = self._concurrency.limit
            self._concurrency.moved(count, time.monotonic(), saturated=self._busy >= before)
            more = self._concurrency.limit > before
        if more:
            self._hire()

    def outranked(self, fetch: Fetch) -> bool:
        """Whether a fetch that goes before this one has something to do (looked at without the lock: late by a chunk at worst)."""
        return any(other.priority < fetch.priority and other.left for other in tuple(self._fetches))


class _Run:
    """One span in the hands of one worker. `done` is the first chunk that is not done."""

    def __init__(self, engine: FetchEngine, fetch: Fetch, span: Span, buffer: Buffer) -> None:
        self._engine = engine
        self._fetch = fetch
        self._span = span
        self._incoming: IncomingFile = fetch.incoming(span.file)
        self.buffer = buffer
        self.done = span.first

    def check(self) -> None:
        """Compare what an interrupted fetch left with its journal; what differs is fetched."""
        hints = self._incoming.hints()
        for chunk in self._span.chunks:
            self._fetch.cancelled.check()
            at = chunk_range(chunk, self._incoming.size_bytes)
            view = self.buffer.view[: at.size_bytes]
            self._incoming.read(at.start, view)
            mark = xxhash.xxh3_128_digest(view)
            if mark == hints.get(chunk):
                self._fetch.meter.reused(at.size_bytes)
                self._arrived(chunk, mark)
            else:
                self._fetch.missing(self._span.file, chunk)
            self.done = chunk + 1

    def fetch(self) -> None:
        """Read the span from the origin, chunk by chunk, until it ends or something more wanted comes."""
        whole = self._fetch.is_whole(self._span.file)
        size_bytes = self._incoming.size_bytes
        span = ByteRange(chunk_range(self._span.first, size_bytes).start, chunk_range(self._span.stop - 1, size_bytes).stop)
        with self._fetch.body(self._span.file, span) as body:
            for chunk in self._span.chunks:
                at = chunk_range(chunk, size_bytes)
                view = self.buffer.view[: at.size_bytes]
                self._fill(body, view)
                if at.stop == span.stop:
                    _expect_end(body)
                mark = xxhash.xxh3_128_digest(view)
                self._incoming.write(at.start, view, self._fetch.route)
                self._fetch.meter.fetched(at.size_bytes)
                self._arrived(chunk, mark)
                self.done = chunk + 1
                self._engine.moved(at.size_bytes)
                if not whole and self._engine.outranked(self._fetch):
                    return

    def _fill(self, body: Body, view: memoryview) -> None:
        got = 0
        while got < len(view):
            count = body.readinto(view[got:])
            if count == 0:
                raise RuntimeError(f"a source ended `{self._incoming.path}` early without saying so")
            got += count

    def _arrived(self, chunk: int, mark: bytes) -> None:
        self._incoming.mark(chunk, mark)
        self.buffer, hashed = self._fetch.assembly(self._span.file).arrived(chunk, self.buffer, mark)
        if hashed:
            self._fetch.hashed(self._span.file)


def _expect_end(body: Body) -> None:
    """Let the source notice bytes beyond the promised ones before the last chunk counts."""
    if body.readinto(memoryview(bytearray(1))) != 0:
        raise RuntimeError("a source handed out more than the range that was asked for")
