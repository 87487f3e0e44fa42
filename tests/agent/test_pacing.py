"""How often a node's status is written while a model comes, second by second."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import pytest

from daemonset.reporting import JITTER, PROGRESS_EVERY_S, Reporter
from modelcache.errors import NotFound
from modelcache.k8s.api import ApiServer, Object
from modelcache.patience import Cancellation
from modelcache.testing.polling import until
from tests.agent.pacing import Telling

NODE: Object = {"metadata": {"name": "n", "generation": 1}}


class NoServer:
    """Takes everything."""

    def apply(self, path: str, body: Object, **_: object) -> Object:
        return body


def telling() -> Telling:
    return Telling(cast(ApiServer, NoServer()), "n")


@pytest.mark.parametrize("late", [0.0, 1.0], ids=["soonest", "latest"])
def test_progress_is_told_every_ten_seconds_and_five_percent_and_the_end_at_once(late: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemonset.reporting.random.uniform", lambda low, high: low + late * (high - low))
    every_s = PROGRESS_EVERY_S * (1.0 + JITTER * late)

    fast = telling()
    with fast.of(NODE):
        fast.after(60, bytes_a_second=10)
        assert fast.told == [(at_s, int(at_s) * 10) for at_s in (0.0, *(every_s * n for n in range(1, int(60 / every_s) + 1)))]
        fast.after(2)
        fast.ends()
        fast.after(2)
        assert [done for _, done in fast.told][-1] == 1000
        assert fast.told[-1][0] <= fast.now_s - 1

    slow = telling()
    with slow.of(NODE):
        slow.after(120, bytes_a_second=1)
        steps = [done - before for (_, before), (_, done) in pairwise(slow.told)]
        assert steps == [50, 50]  # of 1000: five percent, however long it takes
        slow.after(60)
        assert len(slow.told) == 3


def test_an_object_that_is_made_again_while_the_last_report_of_the_old_one_fails_is_reported() -> None:
    applied: list[Object] = []

    class MadeAgain:
        def apply(self, path: str, body: Object, **_: object) -> Object:
            applied.append(body)
            if len(applied) == 1:
                reporter.seen(None)
                reporter.seen(NODE)
                raise NotFound("404 of the old one")
            return body

    reporter = Reporter(cast(ApiServer, MadeAgain()), "n", dict, Cancellation())
    with reporter:
        reporter.seen(NODE)
        until(lambda: len(applied) == 2, "the new object's status")
