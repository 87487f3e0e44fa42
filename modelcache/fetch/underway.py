"""Requests in flight, and which of them are left in their middle: those that keep bandwidth from who goes before, and one that gets
nowhere, for a fetch that has none and can't begin any."""

from __future__ import annotations

from modelcache.fetch.fetch import Fetch
from modelcache.fetch.run import Run

GRACE_S = 0.3
"""So long a request of somebody who goes behind has to come to the end of its chunk. With a look each 0.2 s and a new connection, who
begins to wait has the bandwidth within a second, however slow the line. What the chunk has so far is kept."""
CROWD_PATIENCE_S = 60.0
"""So long somebody who has no request waits for the chunk of one of the same rank, and anybody for a file that then starts over; and one
such request is given up in this time, so that many fetches over a slow line finish their chunks nevertheless."""

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

    def moves(self, fetch: Fetch, now_s: float) -> bool:
        """Whether bytes come for it just now."""
        return now_s - fetch.meter.moved_at_s < MOVING_S and any(run.fetch is fetch and not run.is_check for run in self._runs)

    def outranks(self, fetch: Fetch, now_s: float, *, wherever: bool) -> bool:
        """Whether any brings bytes for one that goes before this fetch: that one has the bandwidth.

        Args:
            wherever: from any origin, for all of them share one line; else from the origin of this fetch.
        """
        ahead = {run.fetch for run in self._runs if run.fetch.priority < fetch.priority and (wherever or run.fetch.origin == fetch.origin)}
        return any(self.moves(other, now_s) for other in ahead)

    def behind(self, fetch: Fetch, now_s: float, *, wherever: bool) -> list[Run]:
        """The runs to leave because this fetch goes before theirs, and their chunks had their time.

        Args:
            now_s: on the monotonic clock.
            wherever: from any origin; else from the origin of this fetch.
        """
        late = []
        for run in self._runs:
            if run.fetch.priority <= fetch.priority or not (wherever or run.fetch.origin == fetch.origin):
                continue
            since_s = run.outranked_s
            if since_s is None:
                run.outranked_s = now_s
            elif now_s - since_s >= GRACE_S and not (run.left or run.is_check or run.starts_over):
                late.append(run)
        return late

    def give_up(self, fetch: Fetch, origin: str | None, now_s: float) -> Run | None:
        """The run to leave for this fetch, which has none and can't begin any: of those, the one that has been at its chunk for longest.

        Args:
            origin: whose request has to end for one to begin; None: any.
            now_s: on the monotonic clock.
        """
        if now_s - self._crowded_out_s < CROWD_PATIENCE_S:
            return None
        late = [run for run in self._runs if origin in (None, run.fetch.origin) and self._may_give_up(run, fetch, now_s)]
        found = min(late, key=lambda run: run.since_s, default=None)
        if found is not None:
            self._crowded_out_s = now_s
        return found

    def _may_give_up(self, run: Run, fetch: Fetch, now_s: float) -> bool:
        if run.left or run.is_check or now_s - run.since_s < CROWD_PATIENCE_S:
            return False
        return run.fetch.priority == fetch.priority or (run.fetch.priority > fetch.priority and run.starts_over)
