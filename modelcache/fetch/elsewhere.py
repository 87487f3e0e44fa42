"""The files of one fetch that another process brings: looked at now and then, until they are here or it is for us to bring them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from modelcache.abc.ingest import IncomingFile, Ingest
from modelcache.digest import Digest

STALL_S = 120.0
"""An ingest that gets on with nothing for so long is not waited for any more. Longer than any pause between two tries of a source
(20 s, unless its origin asks for more) and than a connection may stall; so only who is stopped, or hangs on its disk, is left behind."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One look.

    Attributes:
        here_bytes: what others have of the files that are still to be waited for.
        published: files whose bytes are in a blob now.
        ours: files that are for this fetch to bring now.
    """

    here_bytes: int
    published: dict[int, Digest]
    ours: list[int]


class FilesElsewhere:
    """What one fetch waits for. Thread-safe; `look` is for one thread at a time."""

    def __init__(
        self,
        ingest: Ingest,
        known: Callable[[], Mapping[int, Digest]],
        *,
        stall_s: float | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            known: as of `FetchRequest`.
            stall_s: by default `STALL_S`.
        """
        self._ingest = ingest
        self._known = known
        self._stall_s = STALL_S if stall_s is None else stall_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._pulses: dict[int, tuple[tuple[int, ...], float]] = {}
        self._insisted: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._pulses)

    def __contains__(self, file: int) -> bool:
        return file in self._pulses

    @property
    def said(self) -> str | None:
        """What a wait for them is told by; None if there is none."""
        count = len(self._pulses)
        return f"another process brings {'a file' if count == 1 else f'{count} files'} of it" if count else None

    @property
    def files(self) -> list[int]:
        with self._lock:
            return sorted(self._pulses)

    def add(self, file: int) -> None:
        with self._lock:
            self._pulses.setdefault(file, ((), self._now_s()))

    def discard(self, file: int) -> None:
        with self._lock:
            self._pulses.pop(file, None)

    def insist(self, file: int) -> None:
        """What the other brought is not what was stated here: bring it, whoever has the claim."""
        with self._lock:
            self._insisted.add(file)

    def look(self, incoming: Mapping[int, IncomingFile]) -> Seen:
        """See how far others are with these files, and take what nobody brings.

        Raises:
            NoSpace: there is no room for what is now ours to bring.
        """
        here_bytes: dict[int, int] = {}
        published: dict[int, Digest] = {}
        for file, sight in zip(incoming, self._ingest.elsewhere(list(incoming.values())), strict=True):
            if sight.sha256 is not None and file not in self._insisted:
                published[file] = sight.sha256
            else:
                here_bytes[file] = sight.here_bytes
                self._note(file, sight.pulse)
        numbers = {id(item): file for file, item in incoming.items()}
        stuck = {file for file in here_bytes if self._is_stuck(file)}
        claimed = self._ingest.claim([incoming[file] for file in here_bytes if file not in stuck])
        claimed += self._ingest.claim([incoming[file] for file in stuck], anyway=True)
        known = self._known() if claimed else {}
        ours = []
        for item in claimed:
            file = numbers[id(item)]
            del here_bytes[file]
            digest = known.get(file)
            if item.sha256 is None and digest is not None and file not in self._insisted:
                item.link(digest)
            if item.sha256 is None:
                ours.append(file)
            else:
                published[file] = item.sha256
        self._ingest.book([incoming[file] for file in ours])
        return Seen(sum(here_bytes.values()), published, ours)

    def _note(self, file: int, pulse: tuple[int, ...]) -> None:
        with self._lock:
            if file in self._pulses and self._pulses[file][0] != pulse:
                self._pulses[file] = (pulse, self._now_s())

    def _is_stuck(self, file: int) -> bool:
        with self._lock:
            _, since_s = self._pulses.get(file, ((), self._now_s()))
            return file in self._insisted or self._now_s() - since_s >= self._stall_s
