"""One fetch: the state of an ingest that is being filled, shared by the workers that fill it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from modelcache.abc.source import Body, RemoteFile, Source
from modelcache.abc.store import IncomingFile, Ingest, Route
from modelcache.chunks import CHUNK_BYTES, ChunkTable
from modelcache.digest import Digest
from modelcache.errors import Cancelled, DigestMismatch, Unavailable
from modelcache.fetch.assembly import Assembly
from modelcache.fetch.buffers import BufferPool
from modelcache.fetch.plan import PlannedFile, Priority, Schedule, Span
from modelcache.fetch.progress import Meter, Phase, Progress
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange

DIGEST_TRIES = 2
"""A wrong final digest is fetched once more over a fresh connection, then told with both digests (DESIGN §5)."""
WHOLE_TRIES = 4
"""A file that can't be resumed starts over this often in all when its connection breaks."""
SMALL_BYTES = CHUNK_BYTES
FLUSH_FILES = 256
"""Small files become durable this many at a time, with one syncfs."""
LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """Bring every file of `ingest` that is not complete in from `source`.

    Attributes:
        uri: canonical, for progress and errors.
        remote: the listed files, in the order of `ingest.files`.
        identities: one text per file; files of equal, non-empty identity have equal bytes and are fetched once.
        route: how bytes go to disk.
    """

    uri: str
    source: Source
    remote: tuple[RemoteFile, ...]
    ingest: Ingest
    identities: tuple[str, ...]
    priority: Priority
    route: Route


class Fetch:
    """One fetch in progress. Thread-safe. Ends when every file is complete, on the first error, or when cancelled."""

    def __init__(
        self,
        request: FetchRequest,
        pool: BufferPool,
        changed: threading.Condition,
        on_complete: Callable[[Fetch, int, Digest], None],
    ) -> None:
        self._on_complete = on_complete
        self._request = request
        self._pool = pool
        self._changed = changed
        self._incoming: Sequence[IncomingFile] = request.ingest.files
        self._left = {i for i, item in enumerate(self._incoming) if item.sha256 is None}
        self._schedule = Schedule([self._planned(i) if i in self._left else None for i in range(len(self._incoming))])
        self._assemblies = {i: Assembly(self._incoming[i], request.remote[i].digests, pool) for i in self._left}
        self._tries = dict.fromkeys(self._left, 1)
        self._batch: list[int] = []
        self._error: BaseException | None = None
        self._bodies: set[Body] = set()
        self.cancelled = Cancellation()
        self.priority = request.priority
        self.route = request.route
        self.active = 0
        self.compared: dict[int, tuple[Digest, ...]] = {}
        self.meter = Meter(sum(item.size_bytes for item in self._incoming), len(self._incoming))
        for i, item in enumerate(self._incoming):
            if i not in self._left:
                self.meter.reused(item.size_bytes)
                self.meter.file_done()

    def _planned(self, file: int) -> PlannedFile:
        remote, incoming = self._request.remote[file], self._incoming[file]
        return PlannedFile(
            size_bytes=incoming.size_bytes,
            whole=not remote.resumable,
            leads=remote.path.endswith(".safetensors"),
            hinted=frozenset(incoming.hints()) if remote.resumable else frozenset(),
        )

    # -- for the caller ---------------------------------------------------------------------------------------------

    @property
    def files_left(self) -> set[int]:
        """Numbers of the files that are not complete. A copy."""
        with self._changed:
            return set(self._left)

    def identity(self, file: int) -> str:
        """What says that two fetches want the same bytes; empty if nothing does."""
        return self._request.identities[file]

    def follow(self, file: int) -> None:
        """Another fetch brings this file; the engine holds the lock."""
        self._schedule.park(file)

    def link(self, file: int, digest: Digest) -> None:
        """The other fetch has published this file: link it, or bring it after all if it is gone again."""
        try:
            if not self.ended and self._incoming[file].link(digest):
                self.meter.reused(self._incoming[file].size_bytes)
                self._done(file, digest)
                return
        except Exception as error:
            self._fail(error)
        self.lead(file)

    def lead(self, file: int) -> None:
        """The other fetch did not bring this file: bring it."""
        with self._changed:
            if file in self._left:
                self._schedule.unpark(file)
            self._changed.notify_all()

    def begin(self) -> None:
        """Complete what needs no bytes (empty files)."""
        for file in [i for i in self._left if self._incoming[i].size_bytes == 0]:
            self.hashed(file)
        self._settle()

    def wait(self, cancel: Cancellation) -> None:
        """Until it has ended and no worker touches the ingest any more.

        Raises:
            Cancelled: by `cancel` or `Fetch.cancel`.
            ModelCacheError: the first error of any worker.
        """
        with cancel.on_cancel(self.cancel), self._changed:
            while not (self.ended and self.active == 0):
                self._changed.wait(LOOK_S)
        for assembly in self._assemblies.values():
            assembly.release()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """Stop; what is marked stays for the next fetch."""
        self._fail(Cancelled("cancelled; what was fetched is kept for the next try", address=self._request.uri))

    def look(self, phase: Phase = Phase.FETCHING) -> Progress:
        return self.meter.look(self._request.uri, phase)

    def want(self, file: int, first_chunk: int, stop_chunk: int) -> None:
        """A reader waits for these chunks: they go before everything else of this fetch."""
        with self._changed:
            self._schedule.want(file, first_chunk, stop_chunk)

    @property
    def read_back_bytes(self) -> int:
        """Bytes that had to be read back from disk to be hashed."""
        return sum(item.read_back_bytes for item in self._assemblies.values())

    # -- for the engine's workers -----------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return self._error is not None or not self._left

    @property
    def left(self) -> bool:
        """Whether spans wait to be taken."""
        return not self.ended and self._schedule.left

    def take(self, window_files: int) -> Span | None:
        """The next span; the engine holds the lock."""
        if self.ended:
            return None
        span = self._schedule.take(window_files)
        if span is not None:
            self.active += 1
        return span

    def incoming(self, file: int) -> IncomingFile:
        return self._incoming[file]

    def assembly(self, file: int) -> Assembly:
        return self._assemblies[file]

    def is_whole(self, file: int) -> bool:
        return not self._request.remote[file].resumable

    @contextmanager
    def body(self, file: int, span: ByteRange) -> Iterator[Body]:
        """An open body that `cancel` can break."""
        self.cancelled.check()
        body = self._request.source.open(self._request.remote[file], span, self.cancelled)
        with self._changed:
            self._bodies.add(body)
        try:
            self.cancelled.check()
            yield body
        finally:
            with self._changed:
                self._bodies.discard(body)
            body.close()

    def missing(self, file: int, chunk: int) -> None:
        with self._changed:
            self._schedule.missing(file, chunk)

    def hashed(self, file: int) -> None:
        """Every byte of a file went through its checksums: publish its blob, or start it over if they are wrong."""
        assembly = self._assemblies[file]
        try:
            digest, table = assembly.result(f"{self._request.uri} {self._request.remote[file].path}")
        except DigestMismatch:
            if self._tries[file] >= DIGEST_TRIES:
                raise
            self._request.source.close()  # so that the next try has a fresh connection
            self._start_over(file)
            return
        self.compared[file] = assembly.compared
        if self._incoming[file].size_bytes <= SMALL_BYTES:
            self._complete_in_batches(file)
        else:
            self._complete(file, digest, table)

    def ended_span(self, span: Span, done: int, error: BaseException | None) -> None:
        """A worker is through with a span, up to chunk `done`."""
        if error is not None and self._may_start_over(span.file, error):
            error, done = None, span.stop
            self._start_over(span.file)
        with self._changed:
            self._schedule.ended(span, done)
        if error is not None:
            self._fail(error)
        try:
            self._settle()
        except Exception as caught:
            self._fail(caught)
        with self._changed:
            self.active -= 1
            self._changed.notify_all()

    def _may_start_over(self, file: int, error: BaseException) -> bool:
        return isinstance(error, Unavailable) and self.is_whole(file) and self._tries[file] < WHOLE_TRIES and not self.cancelled.requested

    def _start_over(self, file: int) -> None:
        self._tries[file] += 1
        incoming = self._incoming[file]
        self.meter.lost(incoming.ranges().size_bytes)
        incoming.restart()
        self._assemblies[file].restart()
        with self._changed:
            self._schedule.restart(file)
            self._changed.notify_all()

    def _complete(self, file: int, digest: Digest, table: ChunkTable) -> None:
        self._incoming[file].complete(digest, table)
        self._done(file, digest)

    def _done(self, file: int, digest: Digest) -> None:
        self.meter.file_done()
        with self._changed:
            self._left.discard(file)
            self._changed.notify_all()
        self._on_complete(self, file, digest)

    def _complete_in_batches(self, file: int) -> None:
        with self._changed:
            self._batch.append(file)
            full = len(self._batch) >= FLUSH_FILES
        if full:
            self._flush()

    def _settle(self) -> None:
        """Flush the last small files once nothing else can join them."""
        with self._changed:
            due = bool(self._batch) and self._error is None and not self._schedule.left
        if due:
            self._flush()

    def _flush(self) -> None:
        with self._changed:
            batch, self._batch = self._batch, []
        if not batch:
            return
        self._request.ingest.flush([self._incoming[file] for file in batch])
        for file in batch:
            self._complete(file, *self._assemblies[file].result(self._request.remote[file].path))

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._error is None and self._left:
                self._error = error
            bodies = list(self._bodies)
            self._changed.notify_all()
        self.cancelled.cancel()
        for body in bodies:
            body.abort()
