"""What a fetch says about itself while it runs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from modelcache.patience import Wait
from modelcache.units import format_duration

RATE_WINDOW_S = 5.0
"""Rate and time left are taken over the last seconds, so that they follow what happens now."""


class Phase(StrEnum):
    RESOLVING = "resolving"
    RESERVING = "reserving"
    FETCHING = "fetching"
    PUBLISHING = "publishing"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Progress:
    """One look at a fetch.

    Attributes:
        uri: canonical.
        bytes_done: of `bytes_total`, those that are here: reused, fetched, and brought so far by another process of files that
            are waited for.
        bytes_fetched: came over the network in this fetch; bytes that had to be fetched again count again.
        bytes_reused: were here before, or were brought by another fetch: blobs of other models, and kept chunks of an earlier try.
        bytes_awaited: of `bytes_done`, those in files that another process is bringing just now.
        rate_bytes_per_s: of what arrives, whoever brings it, over the last seconds; of a finished fetch, what it fetched over all.
        eta_s: seconds left at that rate; None while unknown.
        waiting: why a request waits before it is tried again, and how long; None: none does.
        hit: the snapshot was here; nothing was fetched.
        stale: and it is the last version that is known, for the origin could not be asked.
    """

    uri: str
    phase: Phase
    bytes_total: int = 0
    bytes_done: int = 0
    bytes_fetched: int = 0
    bytes_reused: int = 0
    bytes_awaited: int = 0
    files_total: int = 0
    files_done: int = 0
    rate_bytes_per_s: float = 0.0
    eta_s: float | None = None
    elapsed_s: float = 0.0
    waiting: str | None = None
    hit: bool = False
    stale: bool = False


def hit_progress(uri: str, size_bytes: int, file_count: int, started_s: float) -> Progress:
    """Of a model that was here when it was asked for, at `started_s` (monotonic)."""
    return Progress(
        uri=uri,
        phase=Phase.DONE,
        bytes_total=size_bytes,
        bytes_done=size_bytes,
        bytes_reused=size_bytes,
        files_total=file_count,
        files_done=file_count,
        eta_s=0.0,
        elapsed_s=time.monotonic() - started_s,
        hit=True,
    )


def said(waits: Sequence[Wait]) -> str | None:
    """`waiting` of these pauses: the longest."""
    if not waits:
        return None
    others = f" (and {len(waits) - 1} more)" if len(waits) > 1 else ""
    return f"waiting {format_duration(waits[0].until.remaining_s())}{others}: {waits[0].why}"


class Meter:
    """Counts bytes of one fetch from many threads and tells their rate."""

    def __init__(self, bytes_total: int, files_total: int) -> None:
        self._lock = threading.Lock()
        self._started_s = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque([(self._started_s, 0)])
        self._bytes_total = bytes_total
        self._files_total = files_total
        self._fetched = 0
        self._done = 0
        self._reused = 0
        self._awaited = 0
        self._arrived = 0
        self._files_done = 0

    def fetched(self, count: int) -> None:
        """`count` bytes arrived."""
        with self._lock:
            self._fetched += count
            self._done += count
            self._sample(count)

    def awaited(self, count: int) -> None:
        """Another process has brought `count` bytes of the files that are waited for just now."""
        with self._lock:
            self._sample(max(0, count - self._awaited))
            self._awaited = count

    def _sample(self, count: int) -> None:
        self._arrived += count
        now = time.monotonic()
        if now - self._samples[-1][0] >= 0.1:
            self._samples.append((now, self._arrived))
        while now - self._samples[0][0] > RATE_WINDOW_S and len(self._samples) > 2:
            self._samples.popleft()

    def reused(self, count: int) -> None:
        """`count` bytes were here already."""
        with self._lock:
            self._reused += count
            self._done += count

    def lost(self, count: int, reused: int = 0) -> None:
        """`count` bytes counted as done, `reused` of them as reused, were dropped and must come again."""
        with self._lock:
            self._done -= count
            self._reused -= reused

    def file_done(self) -> None:
        with self._lock:
            self._files_done += 1

    @property
    def moved_at_s(self) -> float:
        """When bytes came last, to a tenth of a second, or when it began; monotonic."""
        return self._samples[-1][0]

    @property
    def fetched_bytes(self) -> int:
        return self._fetched

    @property
    def reused_bytes(self) -> int:
        return self._reused

    def look(self, uri: str, phase: Phase) -> Progress:
        """The state now."""
        with self._lock:
            now = time.monotonic()
            elapsed_s = now - self._started_s
            since_s, since_bytes = (self._started_s, 0) if phase is Phase.DONE else self._samples[0]
            arrived = self._fetched if phase is Phase.DONE else self._arrived
            rate = (arrived - since_bytes) / max(now - since_s, 1e-6)
            done = self._done + self._awaited
            left = self._bytes_total - done
            return Progress(
                uri=uri,
                phase=phase,
                bytes_total=self._bytes_total,
                bytes_done=done,
                bytes_fetched=self._fetched,
                bytes_reused=self._reused,
                bytes_awaited=self._awaited,
                files_total=self._files_total,
                files_done=self._files_done,
                rate_bytes_per_s=rate,
                eta_s=left / rate if rate > 0 else None,
                elapsed_s=elapsed_s,
            )
