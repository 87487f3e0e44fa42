from __future__ import annotations

import re
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

import modelcache.fetch.progress
from modelcache.abc.ingest import Route
from modelcache.fetch.progress import RATE_WINDOW_S, Meter, Phase, said
from modelcache.fetch.route import available_memory_bytes, route_for_reader
from modelcache.patience import Cancellation


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(modelcache.fetch.progress, "time", clock)
    return clock


def test_rate_follows_the_last_seconds_and_the_end_tells_all_of_it(clock: Clock) -> None:
    meter = Meter(10_000, 1)
    for _ in range(100):
        clock.now_s += 0.1
        meter.fetched(10)  # 100 bytes a second for 10 s
    for _ in range(100):
        clock.now_s += 0.1
        meter.fetched(80)  # 800 bytes a second for 10 s
    seen = meter.look("s3://b/m", Phase.FETCHING)
    assert seen.rate_bytes_per_s == pytest.approx(800, rel=0.02)
    assert seen.eta_s == pytest.approx(1000 / 800, rel=0.02)
    assert seen.elapsed_s == pytest.approx(20)
    assert meter.look("s3://b/m", Phase.DONE).rate_bytes_per_s == pytest.approx(450)


def test_a_stall_shows_in_the_rate(clock: Clock) -> None:
    meter = Meter(1000, 1)
    clock.now_s += 1
    meter.fetched(500)
    assert meter.look("x", Phase.FETCHING).eta_s == pytest.approx(1)
    clock.now_s += 9
    seen = meter.look("x", Phase.FETCHING)
    assert seen.rate_bytes_per_s == pytest.approx(50)
    assert seen.eta_s == pytest.approx(10)


def test_what_was_here_before_is_no_rate(clock: Clock) -> None:
    meter = Meter(1000, 2)
    meter.reused(900)
    meter.file_done()
    clock.now_s += 1
    seen = meter.look("x", Phase.FETCHING)
    assert (seen.bytes_done, seen.bytes_reused, seen.bytes_fetched) == (900, 900, 0)
    assert (seen.rate_bytes_per_s, seen.eta_s) == (0, None)
    assert (seen.files_done, seen.files_total) == (1, 2)


def test_the_longest_wait_is_told() -> None:
    assert said([]) is None
    cancel = Cancellation()
    with cancel.saying("the origin is busy (503)", 3600 * 5), cancel.saying("no answer", 1.0):
        told = said(cancel.waits) or ""
    assert re.fullmatch(r"waiting [45]h\d\dm \(and 1 more\): the origin is busy \(503\)", told)


@given(st.lists(st.tuples(st.sampled_from(["fetch", "reuse", "lose"]), st.integers(0, 1000)), max_size=50))
def test_done_is_what_was_reused_and_fetched_without_what_was_lost(events: list[tuple[str, int]]) -> None:
    meter = Meter(1000, 1)
    fetched = reused = kept = 0
    for event, count in events:
        if event == "fetch":
            meter.fetched(count)
            fetched, kept = fetched + count, kept + count
        elif event == "reuse":
            meter.reused(count)
            reused += count
        else:
            meter.lost(kept + reused, reused)
            kept = reused = 0
    seen = meter.look("x", Phase.FETCHING)
    assert (seen.bytes_done, seen.bytes_fetched, seen.bytes_reused) == (kept + reused, fetched, reused)


def test_samples_do_not_pile_up(clock: Clock) -> None:
    meter = Meter(10**9, 1)
    for _ in range(20_000):
        clock.now_s += 0.01
        meter.fetched(1)
    assert len(meter._samples) <= RATE_WINDOW_S / 0.1 + 3


@pytest.mark.parametrize(("size_bytes", "route"), [(500, Route.BUFFERED), (501, Route.DIRECT)])
def test_the_page_cache_is_for_what_fits(size_bytes: int, route: Route) -> None:
    assert route_for_reader(size_bytes, available_bytes=1000) is route


def test_memory_is_read_from_the_kernel(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert available_memory_bytes(meminfo) == 0
    meminfo.write_text("MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    8000 kB\n")
    assert available_memory_bytes(meminfo) == 8000 * 1024
    meminfo.write_text("MemTotal:       16000 kB\n")
    assert available_memory_bytes(meminfo) == 0
    assert available_memory_bytes() > 0
