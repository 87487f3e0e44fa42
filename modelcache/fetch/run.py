"""One span in the hands of one worker: from the origin, or from what an earlier try left, into the ingest and its checksums."""

from __future__ import annotations

import time
from typing import Protocol

import xxhash

from modelcache.abc.ingest import IncomingFile
from modelcache.abc.source import Body
from modelcache.chunks import chunk_range
from modelcache.errors import Cancelled, StoreFault
from modelcache.fetch.buffers import Buffer, copy
from modelcache.fetch.fetch import Fetch
from modelcache.fetch.plan import Span, Work
from modelcache.patience import Cancellation, Deadline
from modelcache.ranges import ByteRange

HOLD_S = 20.0
"""So long nothing is read of an answer that can't be resumed while somebody goes before it: servers wait a minute for who takes nothing."""
LOOK_S = 0.2


class Traffic(Protocol):
    """What a run tells and asks between two chunks."""

    def received(self, fetch: Fetch, count: int) -> None: ...

    def moved(self, fetch: Fetch, count: int) -> None: ...

    def outranked(self, fetch: Fetch) -> bool: ...

    def overtaken(self, fetch: Fetch) -> bool: ...


class Run:
    """Performs one span, once.

    Attributes:
        buffer: the worker's; after a chunk it may be another one.
        done: the first chunk that is not done.
        since_s: when it began with that chunk, on the monotonic clock.
        outranked_s: when it was first seen since then that another fetch goes before this one; None: it was not.
        left: `leave` was called.
    """

    def __init__(self, fetch: Fetch, span: Span, buffer: Buffer | None, traffic: Traffic) -> None:
        self.fetch = self._fetch = fetch
        self._span = span
        self._traffic = traffic
        self._incoming: IncomingFile = fetch.incoming(span.file)
        self._hashed = False
        self._unkept_bytes = 0
        self._room: ByteRange | None = None
        self._came = memoryview(b"")
        self.buffer = buffer
        self.done = span.first
        self.since_s = time.monotonic()
        self.outranked_s: float | None = None
        self.left = False
        self._stop = Cancellation(told=fetch.cancelled)

    @property
    def is_check(self) -> bool:
        """Whether it asks no origin for anything."""
        return self._span.work is Work.CHECK

    @property
    def starts_over(self) -> bool:
        """Whether nothing of the file stays when it is left."""
        return self._fetch.is_whole(self._span.file)

    def leave(self) -> None:
        """End the request, whatever it waits for; what came stays, but for files that start over. From any thread."""
        self.left = True
        self._stop.cancel()

    def perform(self) -> None:
        """Raises what the source, the store and the checksums raise."""
        buffer = self.buffer or Buffer()
        self.buffer = buffer
        try:
            self._check(buffer) if self.is_check else self._read(buffer)
        except Cancelled:
            if not self.left or self._fetch.cancelled.requested:
                raise
            self._keep_part()
        finally:
            self._fetch.meter.lost(self._unkept_bytes)  # of a chunk that broke off
            if self._room is not None:
                self._fetch.audiences.broke(self._span.file, self._room)
        if self._hashed:
            self._fetch.hashed(self._span.file)

    def _check(self, buffer: Buffer) -> None:
        """Compare what an interrupted fetch left with its journal; what differs is fetched."""
        hints = self._fetch.hints(self._span.file)
        for chunk in self._span.chunks:
            self._fetch.cancelled.check()
            at = chunk_range(chunk, self._incoming.size_bytes)
            mark = self._mark_on_disk(at, buffer)
            if mark is not None and mark == hints.get(chunk):
                self._fetch.reused(self._span.file, at.size_bytes)
                buffer = self._arrived(chunk, buffer.view[: at.size_bytes], buffer, mark)
            else:
                self._fetch.missing(self._span.file, chunk)
            self.done = chunk + 1

    def _mark_on_disk(self, at: ByteRange, buffer: Buffer) -> bytes | None:
        view = buffer.view[: at.size_bytes]
        try:
            self._incoming.read(at.start, view)
        except StoreFault:
            return None  # the journal got to the disk and the bytes did not: a hint that proved wrong
        return xxhash.xxh3_128_digest(view)

    def _read(self, buffer: Buffer) -> None:
        """Read the span from the origin, chunk by chunk, until it ends or something more wanted comes.

        The connection is given back before the last chunk is written and hashed: that can take long, when others that were
        ahead follow it, and ends with the publishing of the blob.
        """
        size_bytes = self._incoming.size_bytes
        last = self._span.stop - 1
        view, here_bytes = self._begin(self._span.first, buffer)
        span = ByteRange(chunk_range(self._span.first, size_bytes).start + here_bytes, chunk_range(last, size_bytes).stop)
        leaves = not self.starts_over
        with self._fetch.body(self._span.file, span, self._stop) as body:
            if body.stated:
                self._fetch.told_of(self._span.file, body.stated)
            for chunk in range(self._span.first, last):
                self._fill(body, view, here_bytes)
                buffer = self._keep(chunk, view, buffer)
                if leaves and self._traffic.outranked(self._fetch):
                    return
                self._fetch.parts.forget(self._incoming, chunk + 1)
                view, here_bytes = self._place(chunk + 1, buffer), 0
            self._fill(body, view, here_bytes)
            _expect_end(body)
        self._keep(last, view, buffer)

    def _place(self, chunk: int, buffer: Buffer) -> memoryview:
        """Where the bytes of a chunk go: where somebody wants them, else in the buffer."""
        at = chunk_range(chunk, self._incoming.size_bytes)
        room = self._fetch.audiences.room(self._span.file, at)
        self._room = None if room is None else at
        return buffer.view[: at.size_bytes] if room is None else room

    def _begin(self, chunk: int, buffer: Buffer) -> tuple[memoryview, int]:
        """Where the bytes of the first chunk go, and how many of them were kept when its request was left."""
        view = self._place(chunk, buffer)
        here_bytes = self._fetch.parts.take(self._incoming, chunk, view)
        self._unkept_bytes += here_bytes
        self._came = view[:here_bytes]
        return view, here_bytes

    def _fill(self, body: Body, view: memoryview, here_bytes: int) -> None:
        """Receive a chunk, of which the first bytes are here."""
        got = here_bytes
        try:
            while got < len(view):
                if self.outranked_s is not None and self.starts_over:
                    self._stand_back()
                count = body.readinto(view[got:])
                if count == 0:
                    raise RuntimeError(f"a source ended `{self._incoming.path}` early without saying so")
                got += count
                self._fetch.meter.fetched(count)
                self._unkept_bytes += count
        finally:
            self._came = view[:got]
            self._traffic.received(self._fetch, got - here_bytes)

    def _stand_back(self) -> None:
        """Take nothing while bytes come for somebody who goes before this fetch: to leave would cost all of the file."""
        deadline = Deadline.after(HOLD_S)
        while self._traffic.overtaken(self._fetch) and not deadline.passed:
            self._stop.wait(LOOK_S)
        self.outranked_s = None

    def _keep_part(self) -> None:
        """The request was left: what has come of its chunk is gone on with later."""
        size_bytes = chunk_range(self.done, self._incoming.size_bytes).size_bytes
        if self.is_check or not self._fetch.goes_on_inside(self._span.file) or not 0 < len(self._came) < size_bytes:
            return
        self._fetch.parts.keep(self._incoming, self.done, self._came)
        self._unkept_bytes = 0

    def _keep(self, chunk: int, data: memoryview, buffer: Buffer) -> Buffer:
        at = chunk_range(chunk, self._incoming.size_bytes)
        mark = xxhash.xxh3_128_digest(data)
        self._incoming.write(at.start, data, self._fetch.route)
        self._unkept_bytes -= at.size_bytes
        self._came = memoryview(b"")
        buffer = self._arrived(chunk, data, buffer, mark)
        self.done, self.since_s, self.outranked_s = chunk + 1, time.monotonic(), None
        self._traffic.moved(self._fetch, at.size_bytes)
        return buffer

    def _arrived(self, chunk: int, data: memoryview, buffer: Buffer, mark: bytes) -> Buffer:
        at = chunk_range(chunk, self._incoming.size_bytes)
        assembly = self._fetch.assembly(self._span.file)
        if self._room is not None and not assembly.hash_first(chunk, data):
            copy(data, buffer.view)  # who reads there may write there from the mark on, and the hash is to see what came
        self._fetch.audiences.arrived(self._span.file, at, data, mark)
        self._room = None
        self._incoming.mark(chunk, mark)
        self.buffer, hashed = assembly.arrived(chunk, buffer, mark)
        self._hashed = self._hashed or hashed
        return self.buffer


def _expect_end(body: Body) -> None:
    """Let the source notice bytes beyond the promised ones before the last chunk counts."""
    if body.readinto(memoryview(bytearray(1))) != 0:
        raise RuntimeError("a source handed out more than the range that was asked for")
