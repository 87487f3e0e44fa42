"""One fetch: the state of an ingest that is being filled, shared by the workers that fill it."""

from __future__ import annotations

import contextvars
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from modelcache.abc.ingest import IncomingFile
from modelcache.abc.source import Body
from modelcache.digest import Algorithm, Digest
from modelcache.errors import Cancelled, DigestMismatch, Unavailable
from modelcache.fetch.assembly import Assembly
from modelcache.fetch.audience import Audiences
from modelcache.fetch.buffers import BufferPool
from modelcache.fetch.elsewhere import FilesElsewhere
from modelcache.fetch.parts import Parts
from modelcache.fetch.plan import PlannedFile, Priority, Schedule, Span
from modelcache.fetch.progress import Meter, Phase, Progress, said
from modelcache.fetch.rank import Rank
from modelcache.fetch.request import FetchRequest
from modelcache.fetch.small_files import Batch, SmallFiles
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange

DIGEST_TRIES = 2
"""A wrong final digest is fetched once more over a fresh connection, then told with both digests (`docs/semantics.md`, Integrity)."""
WHOLE_TRIES = 4
"""A file that can't be resumed starts over this often in all when its connection breaks."""
LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a fetch shares with the engine that runs it.

    Attributes:
        changed: the engine's lock (re-entrant), notified when there may be something to do or to wait for no longer.
        published: called under the lock, once, when a file is published; who waits for it.
        awaiting: called under the lock when a fetch begins to wait for another process.
        impatient: called now and then, without the lock, while somebody waits for a fetch.
        ended: called under the lock, once, when the fetch ends.
    """

    pool: BufferPool
    changed: threading.Condition
    published: Callable[[Fetch, int, Digest], list[tuple[Fetch, int]]]
    awaiting: Callable[[], None]
    impatient: Callable[[Fetch], None]
    ended: Callable[[Fetch], None]


class Fetch:
    """One fetch in progress. Thread-safe. Ends when every file is complete, on the first error, or when cancelled.

    Attributes:
        origin: that its bytes come from.
        active: threads of the engine that work for it.
        awaited: its files that other processes bring.
        served: the engine's count of spans when it last got one.
        compared: by file number, what its origin stated and its bytes were compared with.
        context: of who began it; work on it runs in a copy.
        parts: what came of chunks whose requests were left.
        told: by file number, what the answer that brought its bytes stated beside its listing.
    """

    def __init__(self, request: FetchRequest, around: Surroundings) -> None:
        self._request = request
        self.uri = request.uri
        self.context = contextvars.copy_context()
        self.origin = str(request.source.origin)
        self._around = around
        self._changed = around.changed
        self._incoming: Sequence[IncomingFile] = request.ingest.files
        self._left = {i for i, item in enumerate(self._incoming) if item.sha256 is None}
        self._hints = {i: self._left_of(i) for i in self._left}
        self._schedule = Schedule([self._planned(i) if i in self._left else None for i in range(len(self._incoming))])
        self._assemblies = {i: Assembly(self._incoming[i], request.remote[i].digests, around.pool) for i in self._left}
        self._small = SmallFiles((i, self._incoming[i].size_bytes) for i in self._left)
        self.awaited = FilesElsewhere(request.ingest, request.known)
        self._digest_tries: Counter[int] = Counter()
        self._whole_tries: Counter[int] = Counter()
        self._reused: Counter[int] = Counter()
        self._error: BaseException | None = None
        self.rank = Rank(request.priority)
        self.cancelled = Cancellation()
        self.route = request.route
        self.active = 0
        self.served = 0
        self.compared: dict[int, tuple[Digest, ...]] = {}
        self.told: dict[int, tuple[Digest, ...]] = {}
        self.audiences = Audiences()
        self.meter = Meter(sum(item.size_bytes for item in self._incoming), len(self._incoming))
        self.parts = Parts(self.meter)
        for i, item in enumerate(self._incoming):
            if i not in self._left:
                self.meter.reused(item.size_bytes)
                self.meter.file_done()

    def _left_of(self, file: int) -> dict[int, bytes]:
        """What an earlier try has left of a file and may be gone on with."""
        return dict(self._incoming[file].hints()) if self.goes_on_inside(file) else {}

    def _planned(self, file: int) -> PlannedFile:
        remote = self._request.remote[file]
        return PlannedFile(
            size_bytes=self._incoming[file].size_bytes,
            whole=not remote.resumable,
            leads=remote.path.endswith(".safetensors"),
            hinted=frozenset(self._hints.get(file, ())),
        )

    # -- for the caller ---------------------------------------------------------------------------------------------

    def wait(self, cancel: Cancellation) -> None:
        """Until it has ended and no thread of the engine touches the ingest any more.

        Raises:
            Cancelled: by `cancel` or `Fetch.cancel`.
            ModelCacheError: the first error of any worker.
        """
        with cancel.on_cancel(self.cancel):
            self._around.impatient(self)
            while not self._is_over(LOOK_S):
                self._around.impatient(self)
        for assembly in self._assemblies.values():
            assembly.release()
        if self._error is not None:
            raise self._error

    def _is_over(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.ended and self.active == 0, timeout_s)

    def cancel(self) -> None:
        """Stop; what is marked stays for the next fetch."""
        self.fail(Cancelled("cancelled; what was fetched is kept for the next try", address=self._request.uri))

    def look(self, phase: Phase = Phase.FETCHING) -> Progress:
        return replace(self.meter.look(self._request.uri, phase), waiting=said(self.cancelled.waits) or self.awaited.said)

    def want(self, file: int, first_chunk: int, stop_chunk: int, *, now: bool = False) -> None:
        """A reader will ask for these chunks, or waits for them `now`: they go before everything else of this fetch."""
        with self._changed:
            self._schedule.want(file, first_chunk, stop_chunk, now=now)
            self._changed.notify_all()

    @property
    def read_back_bytes(self) -> int:
        """Bytes that had to be read back from disk to be hashed."""
        return sum(item.read_back_bytes for item in self._assemblies.values())

    # -- for the engine, which holds the lock -----------------------------------------------------------------------

    @property
    def files_to_share(self) -> list[int]:
        """Numbers of the files that bytes are to come for, in order."""
        return sorted(file for file in self._left if self._incoming[file].size_bytes > 0)

    def identity(self, file: int) -> str:
        """What says that two fetches want the same bytes; empty if nothing does."""
        return self._request.identities[file]

    @property
    def priority(self) -> Priority:
        return self.rank.priority

    def follow(self, file: int) -> None:
        """Another fetch brings this file."""
        self._schedule.park(file)
        self._small.goes(file)
        self.awaited.discard(file)

    def lead(self, file: int) -> None:
        """No other fetch brings this file: bring it, or wait for the process that does."""
        if file not in self._left:
            return
        if not self._incoming[file].claimed:
            self.follow(file)
            self.awaited.add(file)
            self._around.awaiting()
            return
        self.awaited.discard(file)
        self._hints[file] = self._left_of(file)
        self._schedule.unpark(file, self._hints[file])
        self._small.comes(file)

    def prefer(self, files: Collection[int]) -> None:
        """Others wait for these files."""
        self._schedule.prefer(files)

    def take(self, window_files: int) -> Span | None:
        """The next span."""
        if self.ended:
            return None
        span = self._schedule.take(window_files)
        if span is not None:
            self.active += 1
        return span

    # -- for the engine's workers -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Complete what needs no bytes (empty files)."""
        with self._changed:
            empty = sorted(file for file in self._left if self._incoming[file].size_bytes == 0)
        try:
            for file in empty:
                self.hashed(file)
            self._settle()
        except Exception as error:
            self.fail(error)

    @contextmanager
    def busy(self) -> Iterator[bool]:
        """Whether the fetch goes on; `wait` does not give the ingest back inside the block, and what it raises ends the fetch."""
        with self._changed:
            goes_on = not self.ended
            self.active += goes_on
        try:
            yield goes_on
        except BaseException as error:  # it must not end the fetch whose worker this is
            self.fail(error)
        finally:
            with self._changed:
                self.active -= goes_on
                self._changed.notify_all()

    def link(self, file: int, digest: Digest) -> None:
        """Another fetch has published this file: link it, or bring it after all if it is gone again or not what was stated here."""
        with self.busy() as goes_on:
            if not goes_on or file not in self._left:
                return
            incoming = self._incoming[file]
            right = all(item == digest for item in self._request.remote[file].digests if item.algorithm is Algorithm.SHA256)
            if incoming.sha256 is not None or (right and incoming.link(digest)):
                self.meter.reused(incoming.size_bytes)
                self._done(file, digest)
                return
            with self._changed:
                self.lead(file)
                if not right:
                    self.awaited.insist(file)

    @property
    def ended(self) -> bool:
        return self._error is not None or not self._left

    @property
    def succeeded(self) -> bool:
        return self._error is None and not self._left

    @property
    def left(self) -> bool:
        """Whether spans wait to be taken."""
        return not self.ended and self._schedule.left

    def incoming(self, file: int) -> IncomingFile:
        return self._incoming[file]

    def hints(self, file: int) -> Mapping[int, bytes]:
        """What an interrupted fetch says to have left, as of the start."""
        return self._hints[file]

    def assembly(self, file: int) -> Assembly:
        return self._assemblies[file]

    def is_whole(self, file: int) -> bool:
        return not self._request.remote[file].resumable

    def goes_on_inside(self, file: int) -> bool:
        """Whether it may be asked for from anywhere in it, and nothing is lost by that."""
        return not (self.is_whole(file) or self._request.remote[file].stated_later)

    @contextmanager
    def body(self, file: int, span: ByteRange, stop: Cancellation) -> Iterator[Body]:
        """An open body that `stop`, and the end of this fetch, can break."""
        with self.cancelled.on_cancel(stop.cancel):
            stop.check()
            body = self._request.source.open(self._request.remote[file], span, stop)
            try:
                with stop.on_cancel(body.abort):
                    yield body
            finally:
                body.close()

    def told_of(self, file: int, stated: tuple[Digest, ...]) -> None:
        """The answer that now brings all of this file states this about it: it is compared, too."""
        self.told[file] = stated
        self._assemblies[file].states(stated)

    def reused(self, file: int, count: int) -> None:
        """`count` bytes that an interrupted fetch left are right."""
        with self._changed:
            self._reused[file] += count
        self.meter.reused(count)

    def missing(self, file: int, chunk: int) -> None:
        with self._changed:
            self._schedule.missing(file, chunk)
            self._changed.notify_all()

    def hashed(self, file: int) -> None:
        """Every byte of a file went through its checksums: publish its blob, or start it over if they are wrong."""
        assembly = self._assemblies[file]
        try:
            digest, table = assembly.result(f"{self._request.uri} {self._request.remote[file].path}")
        except DigestMismatch:
            self._digest_tries[file] += 1
            if self._digest_tries[file] >= DIGEST_TRIES or self._incoming[file].size_bytes == 0:
                raise
            self._request.source.close()  # so that the next try has a fresh connection
            self._start_over(file)
            return
        self.compared[file] = assembly.compared
        if file in self._small:
            with self._changed:
                batch = self._small.hashed(file, digest, table)
            self._publish(batch)
        else:
            self._incoming[file].complete(digest, table)
            self._done(file, digest)

    def ended_span(self, span: Span, done: int, error: BaseException | None) -> None:
        """A worker is through with a span, up to chunk `done`."""
        try:
            left = error is None and done < span.stop and self.is_whole(span.file)
            if left or (error is not None and self._may_start_over(span.file, error)):
                self._whole_tries[span.file] += not left
                self._start_over(span.file)
                error, done = None, span.stop
        except BaseException as caught:
            error = caught
        with self._changed:
            self._schedule.ended(span, done)
        if error is not None:
            self.fail(error)
        try:
            self._settle()
        except BaseException as caught:  # as in the engine: whatever it was, the fetch must end with it
            self.fail(caught)
        with self._changed:
            self.active -= 1
            if done < span.stop or (self.ended and self.active == 0):  # whoever ended it takes the next span itself
                self._changed.notify_all()

    def _may_start_over(self, file: int, error: BaseException) -> bool:
        if self.cancelled.requested or not self.is_whole(file):
            return False
        return isinstance(error, Unavailable) and self._whole_tries[file] + 1 < WHOLE_TRIES

    def _start_over(self, file: int) -> None:
        incoming = self._incoming[file]
        self.meter.lost(incoming.ranges().size_bytes, self._reused.pop(file, 0))
        self.parts.forget_file(incoming)
        incoming.restart()
        self._assemblies[file].restart()
        self.audiences.restarted(file)
        with self._changed:
            self._schedule.restart(file)
            self._changed.notify_all()

    def _done(self, file: int, digest: Digest) -> None:
        self.meter.file_done()
        with self._changed:
            # One step: a fetch that looks ended with its last file must not hand that file to who waits for it.
            self._left.discard(file)
            self.awaited.discard(file)
            followers = self._around.published(self, file, digest)
            if not self._left and self._error is None:
                self._around.ended(self)
                self._changed.notify_all()
        self.audiences.completed(file)
        for follower, number in followers:
            follower.link(number, digest)

    def _settle(self) -> None:
        """Publish the last small files once no other is on its way."""
        with self._changed:
            batch = self._small.rest() if self._error is None else []
        self._publish(batch)

    def _publish(self, batch: Batch) -> None:
        if batch:
            self._request.ingest.complete([(self._incoming[file], digest, table) for file, digest, table in batch])
        for file, digest, _ in batch:
            self._done(file, digest)

    def fail(self, error: BaseException) -> None:
        """End with this error, unless it has ended."""
        with self._changed:
            if self.ended:
                return
            self._error = error
            self._around.ended(self)
            self._changed.notify_all()
        self.cancelled.cancel()
