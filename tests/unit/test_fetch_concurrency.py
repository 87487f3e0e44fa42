from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from modelcache.fetch.concurrency import KEPT_ORIGINS, LONGEST_HOLD_WINDOWS, WINDOW_S, Concurrencies, Concurrency, ConcurrencyBounds

BOUNDS = ConcurrencyBounds(start=4, least=1, most=16)
CHUNK = 4 << 20


class Origin:
    """Requests in flight → bytes a second, on a clock of its own."""

    def __init__(self, rate_of: Callable[[int], float], bounds: ConcurrencyBounds = BOUNDS) -> None:
        self.rate_of = rate_of
        self.concurrency = Concurrency(bounds)
        self.now_s = 0.0

    def run(self, seconds: float, *, saturated: bool = True) -> list[int]:
        """Chunks arrive for so long; the limits that there were."""
        until_s, limits = self.now_s + seconds, []
        while self.now_s < until_s:
            self.now_s += CHUNK / self.rate_of(self.concurrency.limit)
            self.concurrency.moved(CHUNK, self.now_s, saturated=saturated)
            limits.append(self.concurrency.limit)
        return limits


def test_climbs_to_where_more_brings_no_more() -> None:
    origin = Origin(lambda limit: min(limit, 9) * 100e6)
    limits = origin.run(120)
    assert max(limits) <= 10
    assert origin.run(60).count(9) > 500


def test_climbs_to_the_bound_and_no_further() -> None:
    assert max(Origin(lambda limit: limit * 100e6).run(300)) == 16


def test_stays_where_it_is_when_one_request_takes_all_there_is() -> None:
    limits = Origin(lambda limit: 100e6).run(200)
    assert set(limits) == {4, 5}
    assert limits.count(5) < len(limits) / 5  # tries grow rarer


def test_does_not_climb_while_something_else_is_what_bounds() -> None:
    assert set(Origin(lambda limit: limit * 100e6).run(60, saturated=False)) == {4}


@pytest.mark.parametrize("rate", [1e6, 10e6])
def test_chance_is_not_taken_for_gain_on_a_slow_origin(rate: float) -> None:
    gaps = random.Random(1)
    limits = Origin(lambda limit: rate / gaps.expovariate(1)).run(600)
    assert sum(limits) / len(limits) < 6


def test_the_complaints_of_all_requests_in_flight_are_one() -> None:
    concurrency = Concurrency(ConcurrencyBounds(16, 1, 16))
    for at_s in (10.0, 10.1, 10.2, 10.9):
        concurrency.throttled(at_s)
    assert concurrency.limit == 8
    concurrency.throttled(10.0 + WINDOW_S)
    assert concurrency.limit == 4
    for after in range(1, 10):
        concurrency.throttled(11.0 + 2 * after)
    assert concurrency.limit == 1


def test_after_a_complaint_it_waits_long_before_it_tries_more() -> None:
    origin = Origin(lambda limit: limit * 100e6)
    origin.run(3)
    origin.concurrency.throttled(origin.now_s)
    halved = origin.concurrency.limit
    assert set(origin.run((LONGEST_HOLD_WINDOWS - 1) * WINDOW_S)) == {halved}
    assert max(origin.run(60)) > halved


@pytest.mark.parametrize("run_s", [0.5, 1.5, 2.5, 3.5, 4.5])
def test_time_without_a_fetch_is_no_slowness(run_s: float) -> None:
    origin = Origin(lambda limit: 400e6)
    origin.run(run_s)
    origin.concurrency.idle()
    origin.now_s += 3600
    assert set(origin.run(60)) <= {4, 5}


def test_a_step_that_was_not_judged_is_taken_back() -> None:
    origin = Origin(lambda limit: 400e6)
    while origin.concurrency.limit == 4:
        origin.run(0.01)
    origin.concurrency.idle()
    assert origin.concurrency.limit == 4


def test_bounds_that_make_no_sense_are_refused() -> None:
    for start, least, most in ((0, 0, 4), (1, 2, 4), (5, 1, 4)):
        with pytest.raises(ValueError, match="not bounds"):
            ConcurrencyBounds(start, least, most)


def test_origins_have_limits_of_their_own_within_one_total() -> None:
    bounds = ConcurrencyBounds(start=4, least=1, most=6)
    requests = Concurrencies(bounds)
    for _ in range(4):
        assert requests.open("a")
        requests.began("a")
    assert not requests.open("a")
    requests.throttled("b", 100.0)
    assert (requests.limit("a"), requests.limit("b"), requests.useful(["a", "b", "b"])) == (4, 2, 6)
    requests.began("b")
    assert not requests.full()
    requests.began("b")
    assert requests.full()
    assert not requests.open("b")
    requests.ended("a")
    assert requests.open("a")
    assert not requests.full()


def test_what_is_kept_of_origins_is_bounded_and_those_in_use_stay() -> None:
    requests = Concurrencies(BOUNDS)
    requests.throttled("busy", 100.0)
    requests.began("busy")
    for number in range(3 * KEPT_ORIGINS):
        requests.limit(f"origin-{number}")
    assert len(requests._of) == KEPT_ORIGINS
    assert requests.limit("busy") == BOUNDS.start // 2
