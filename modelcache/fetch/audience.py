"""Who takes the bytes of a fetch as they pass by."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from modelcache.ranges import ByteRange


class Audience(Protocol):
    """Told in the engine's threads, by several at once: quick, waits for no fetch, and never raises."""

    def room(self, file: int, at: ByteRange) -> memoryview | None:
        """Memory that this chunk may be received into, because it is wanted there; as aligned as the chunk is. `arrived` gives it back, or
        `broke`. None: it goes where the engine has room."""
        ...

    def broke(self, file: int, at: ByteRange) -> None:
        """The room for this chunk is not used any more, and what lies in it is anything."""
        ...

    def arrived(self, file: int, at: ByteRange, data: memoryview, mark: bytes) -> None:
        """This chunk of a file is on disk, and about to be marked; `data`, which may be written to, is good until this returns."""
        ...

    def restarted(self, file: int) -> None:
        """What arrived of this file is void (its digest was wrong, its connection broke): all of it comes again."""
        ...

    def completed(self, file: int) -> None:
        """This file is verified, and a blob."""
        ...


class Audiences:
    """The audiences of one fetch. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: tuple[Audience, ...] = ()

    @contextmanager
    def attending(self, audience: Audience) -> Iterator[None]:
        """Have it told inside the block, and perhaps once more just after. What was there before must be looked for, after this has
        begun: nothing falls in between."""
        with self._lock:
            self._all = (*self._all, audience)
        try:
            yield
        finally:
            with self._lock:
                self._all = tuple(each for each in self._all if each is not audience)

    def room(self, file: int, at: ByteRange) -> memoryview | None:
        return next((room for audience in self._all if (room := audience.room(file, at)) is not None), None)

    def broke(self, file: int, at: ByteRange) -> None:
        for audience in self._all:
            audience.broke(file, at)

    def arrived(self, file: int, at: ByteRange, data: memoryview, mark: bytes) -> None:
        for audience in self._all:
            audience.arrived(file, at, data, mark)

    def restarted(self, file: int) -> None:
        for audience in self._all:
            audience.restarted(file)

    def completed(self, file: int) -> None:
        for audience in self._all:
            audience.completed(file)
