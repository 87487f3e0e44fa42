"""A model that was asked for: here, or on its way; and whether what was handed out on its way is what it turned out to be."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import xxhash

from modelcache.abc.snapshot import Snapshot
from modelcache.arriving.passing import Passage, Passing
from modelcache.cache import ModelCache
from modelcache.digest import Digest
from modelcache.errors import DigestMismatch
from modelcache.fetch.begun import Begun
from modelcache.patience import Cancellation, Condition, begin, end_of
from modelcache.ranges import ByteRange
from modelcache.uri import parse_uri

LOOK_S = 0.5
"""Longest sleep between two looks, for a thread that can be interrupted."""
HINT = "drop what was handed out and load again: the model is verified and here now"


@dataclass(frozen=True, slots=True)
class HandedOut:
    """Bytes of a file that somebody got before the file was verified.

    Attributes:
        marks: xxh3-128 of what they got, by the range that has it: that of the chunks that it lies in, hashed as they passed, or its own.
        passing, pass_number: on whose way, and on which try.
    """

    name: str
    marks: Mapping[ByteRange, bytes]
    passing: Passing
    pass_number: int


class Arrival:
    """One model that somebody reads, from when they ask for it until all of it is verified, published and compared with what they
    got. A context manager: what is still on its way when the block ends is cancelled (chunks are kept), and the snapshot is held
    until then. Thread-safe.
    """

    def __init__(self, cache: ModelCache, uri: str, cancel: Cancellation, *, reads_next: bool) -> None:
        """
        Args:
            cancel: the caller's; ends every wait with `Cancelled`.
            reads_next: its files are read when they are here: they go through the page cache if they fit.
        """
        self._cache = cache
        self._uri = uri
        self._reads_next = reads_next
        self._owner_pid = os.getpid()
        self._cancel = Cancellation()
        self._changed = Condition()
        self._begun: Begun | None = None
        self._snapshot: Snapshot | None = None
        self._error: BaseException | None = None
        self._over = False
        self._handed_out: list[HandedOut] = []
        self._read: dict[str, Digest] = {}
        self._passages: dict[int, Passage] = {}
        self._held = ExitStack()
        self._held.enter_context(cancel.on_cancel(self._stop))
        self._thread = threading.Thread(target=self._bring, name="arrival", daemon=True)

    def __enter__(self) -> Self:
        begin([self._thread], self._end)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        if os.getpid() != self._owner_pid:
            return  # it goes on in the process that began it, and what threads of that one had locked stays locked in a fork
        self._stop()
        end_of(self._thread)
        self._held.close()

    def _stop(self) -> None:
        self._cancel.cancel()
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _bring(self) -> None:
        try:
            opened = self._cache.open(self._uri, reads_next=self._reads_next, cancel=self._cancel, tell=self._note)
            self._snapshot = self._held.enter_context(opened)
        except BaseException as error:  # told to everyone who waits
            self._error = error
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _note(self, begun: Begun) -> None:
        with self._changed:
            if self._begun is None or begun.number > self._begun.number:
                self._begun = begun
                self._changed.notify_all()

    # -- on its way -------------------------------------------------------------------------------------------------

    def later(self, number: int = 0, cancel: Cancellation | None = None) -> Begun | Path:
        """The fetch that brings it now, when it is a later one than this number, or the directory of the snapshot; waits for either.

        Raises:
            What `ModelCache.ensure` raises. Cancelled: also by `cancel`.
        """
        cancel = cancel or self._cancel
        with cancel.on_cancel(self._wake), self._changed:
            while True:
                if self._over:
                    return self._path()
                if self._begun is not None and self._begun.number > number:
                    return self._begun
                self._cancel.check()
                cancel.check()
                self._changed.wait(LOOK_S)

    def _path(self) -> Path:
        if self._snapshot is None:
            assert self._error is not None
            raise self._error
        return self._snapshot.path

    def passage(self, begun: Begun) -> Passage:
        """The files of one of its fetches. It is heard of until this ends: of a pass that proves wrong, too, when all was handed out."""
        with self._changed:
            passage = self._passages.get(begun.number)
            if passage is None:
                passage = self._passages[begun.number] = Passage(begun)
                self._held.enter_context(begun.fetch.audiences.attending(passage))
            return passage

    def handed_out(self, what: HandedOut) -> None:
        """Somebody got these bytes."""
        with self._changed:
            self._handed_out.append(what)

    def dropped(self) -> None:
        """Nobody uses what was handed out until now."""
        with self._changed:
            self._handed_out.clear()

    def read_of(self, name: str, digest: Digest) -> None:
        """Somebody reads a verified file of this content."""
        with self._changed:
            self._read.setdefault(name, digest)

    # -- at its end -------------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """For errors: the canonical URI, without a secret."""
        return str(parse_uri(self._uri)[0])

    @property
    def digest(self) -> Digest:
        """Of the snapshot, once it is published."""
        assert self._snapshot is not None
        return self._snapshot.digest

    def published(self) -> Path:
        """Wait until all of it is verified and published; the snapshot's directory. Raises what `later` raises."""
        with self._changed:
            while not self._over:
                self._cancel.check()
                self._changed.wait(LOOK_S)
            return self._path()

    def finish(self) -> Path:
        """`published`, and compare what was handed out with it.

        Raises:
            DigestMismatch: something else was handed out. What `later` raises.
        """
        path = self.published()
        if self._handed_out or self._read:
            assert self._snapshot is not None
            manifest = self._cache.manifest(str(self._snapshot.digest))
            self._compare(path, {file.path: file.sha256 for file in manifest.files})
        return path

    def _compare(self, path: Path, published: Mapping[str, Digest]) -> None:
        """Another version may have come instead of one that was begun, and a file a second time instead of one that was damaged."""
        for name, digest in self._read.items():
            if published.get(name) != digest:
                raise DigestMismatch(
                    f"`{name}` was handed out, and the model that arrived in the end has another one",
                    address=str(parse_uri(self._uri)[0]),
                    expected=str(published.get(name)),
                    got=str(digest),
                    hint=HINT,
                )
        for what in self._handed_out:
            if what.passing.vouches(what.pass_number, published.get(what.name)):
                continue
            for span, mark in what.marks.items():
                self._expect(path / what.name, span, mark)

    def _expect(self, path: Path, span: ByteRange, mark: bytes) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = mark_of(fd, span)
        finally:
            os.close(fd)
        if found != mark:
            raise DigestMismatch(
                f"bytes {span} of `{path.name}` were handed out while they arrived, and proved wrong when all were here",
                address=str(parse_uri(self._uri)[0]),
                expected=f"xxh3-128:{found.hex()}",
                got=f"xxh3-128:{mark.hex()}",
                hint=HINT,
            )


def mark_of(fd: int, span: ByteRange) -> bytes:
    """xxh3-128 of a range of a file; of no bytes if it doesn't reach so far."""
    with mmap.mmap(-1, max(1, span.size_bytes)) as memory, memoryview(memory) as view:
        got = 0
        while got < span.size_bytes and (count := os.preadv(fd, [view[got : span.size_bytes]], span.start + got)):
            got += count
        return xxhash.xxh3_128_digest(view[:got])
