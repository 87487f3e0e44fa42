"""Requests in flight, and which of them is given up in its middle: one that gets nowhere, for a fetch that has none and can't begin any."""

from __future__ import annotations

from modelcache.fetch.fetch import Fetch
from modelcache.fetch.run import Run

PATIENCE_S = 5.0
"""So long somebody who goes before waits for a chunk to end: slower than 0.8 MiB/s is what an origin in trouble gives, or one that pauses
between tries. What the chunk has so far is fetched again."""
CROWD_PATIENCE_S = 60.0
"""So long one of the same rank does, and anybody for a file that then starts over; and one such request is given up in this time, so
that many fetches over a slow line finish their chunks nevertheless."""

MOVING_S = 2.0
"""Without a byte for so long a fetch has no bandwidth to itself: what goes behind it is not kept waiting by an origin that hangs."""


class Underway:
    """The runs of an engine. Not thread-safe; the engine's lock guards it."""

    def __init__(self) -> None:
        self._runs: set[Run] = set()
        self._crowded_out_s = float("-inf")

    def began(self, run: Run) -> None:
        self._runs.add(run)

    def ended(self, run: Run) -> None:
        self._runs.discard(run)

    def busy(self, origin: str) -> bool:
        """Whether any asks this origin."""
        return any(run.fetch.origin == origin and not run.is_check for run in self._runs)

    def outranks(self, fetch: Fetch, now_s: float, *, wherever: bool) -> bool:
        """Whether any brings bytes for one that goes before this fetch: that one has the bandwidth.

        Args:
            wherever: from any origin, for all of them share one line; else from the origin of this fetch.
        """
        return any(
            run.fetch.priority < fetch.priority
            and (wherever or run.fetch.origin == fetch.origin)
            and not run.is_check
            and now_s - run.fetch.meter.moved_at_s < MOVING_S
            for run in self._runs
        )

    def give_up(self, fetch: Fetch, origin: str | None, now_s: float) -> Run | None:
        """The run to leave that this fetch has waited for too long: of those, the one that has been at its chunk for longest.

        Args:
            origin: whose request has to end for one to begin; None: any.
            now_s: on the monotonic clock.
        """
        late = [
            run for run in self._runs if origin in (None, run.fetch.origin) and now_s - run.since_s >= self._patience_s(run, fetch, now_s)
        ]
        found = min(late, key=lambda run: (_is_crowd(run, fetch), run.since_s), default=None)
        if found is not None and _is_crowd(found, fetch):
            self._crowded_out_s = now_s
        return found

    def _patience_s(self, run: Run, fetch: Fetch, now_s: float) -> float:
        if run.left or run.is_check or run.fetch.priority < fetch.priority:
            return float("inf")
        if not _is_crowd(run, fetch):
            return PATIENCE_S
        return CROWD_PATIENCE_S if now_s - self._crowded_out_s >= CROWD_PATIENCE_S else float("inf")


def _is_crowd(run: Run, fetch: Fetch) -> bool:
    return run.fetch.priority == fetch.priority or run.starts_over
