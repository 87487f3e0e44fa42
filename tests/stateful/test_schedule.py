"""The schedule against a plain model: a dict from chunk to where it is."""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelcache.chunks import CHUNK_BYTES, chunk_count
from modelcache.fetch.plan import SPAN_CHUNKS, WANTED_SHARE, PlannedFile, Schedule, Span, Work


class At(Enum):
    CHECK = auto()
    FETCH = auto()
    OUT = auto()
    DONE = auto()
    PARKED = auto()


@st.composite
def planned_files(draw: st.DrawFn) -> PlannedFile | None:
    chunks = draw(st.one_of(st.integers(0, 3), st.integers(0, 60)))
    if draw(st.integers(0, 9)) == 0:
        return None
    hinted = draw(st.frozensets(st.integers(0, max(0, chunks - 1)), max_size=chunks))
    size_bytes = max(0, chunks * CHUNK_BYTES - draw(st.integers(0, CHUNK_BYTES - 1)))
    return PlannedFile(size_bytes, draw(st.booleans()), draw(st.booleans()), hinted)


class ScheduleMachine(RuleBasedStateMachine):
    """Hands every chunk out once unless it came back; what is wanted first; small files and heads next."""

    @initialize(files=st.lists(planned_files(), max_size=5))
    def begin(self, files: list[PlannedFile | None]) -> None:
        self.plans = files
        self.schedule = Schedule(files)
        self.at: dict[tuple[int, int], At] = {}
        self.wanted: set[tuple[int, int]] = set()
        self.out: list[Span] = []
        for file in range(len(files)):
            self.reset(file)

    def plan(self, file: int) -> PlannedFile:
        plan = self.plans[file]
        assert plan is not None
        return plan

    def chunks(self, file: int) -> range:
        plan = self.plans[file]
        return range(0 if plan is None else chunk_count(plan.size_bytes))

    def reset(self, file: int) -> None:
        for chunk in self.chunks(file):
            checks = chunk in self.plan(file).hinted and not self.plan(file).whole
            self.at[file, chunk] = At.CHECK if checks else At.FETCH

    def is_out(self, file: int) -> bool:
        return any(span.file == file for span in self.out)

    def may_go(self, file: int, chunk: int) -> bool:
        """Whether this chunk waits and nothing keeps it."""
        return self.at[file, chunk] in (At.CHECK, At.FETCH) and not (self.plan(file).whole and self.is_out(file))

    def is_early(self, file: int, chunk: int) -> bool:
        first = len(self.chunks(file)) == 1 or (self.plan(file).leads and not self.plan(file).whole)
        return chunk == 0 and first and self.at[file, chunk] is At.FETCH and self.may_go(file, chunk)

    @rule(window=st.integers(1, 5))
    def take(self, window: int) -> None:
        free = {where for where in self.at if self.may_go(*where)}
        early = {where for where in free if self.is_early(*where)}
        span = self.schedule.take(window)
        if span is None:
            assert not free & self.wanted
            assert not early
            assert not free or len({out.file for out in self.out}) >= window
            return
        taken = {(span.file, chunk) for chunk in span.chunks}
        assert taken
        assert taken <= free
        state = At.CHECK if span.work is Work.CHECK else At.FETCH
        assert {self.at[where] for where in taken} == {state}
        if self.plan(span.file).whole:
            assert span.chunks == self.chunks(span.file)
        else:
            assert len(taken) <= SPAN_CHUNKS
        if free & self.wanted:
            assert taken <= self.wanted
        elif early:
            assert taken <= early
        for where in taken:
            self.at[where] = At.OUT
        self.out.append(span)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100), share=st.integers(0, 4), bad=st.frozensets(st.integers(0, 15), max_size=3))
    def end(self, which: int, share: int, bad: frozenset[int]) -> None:
        """All or a part of a span is done; of what was checked, some was wrong."""
        span = self.out.pop(which % len(self.out))
        stop = span.first + len(span.chunks) * share // 4
        for chunk in range(span.first, stop):
            self.at[span.file, chunk] = At.DONE
            if span.work is Work.CHECK and chunk - span.first in bad:
                self.schedule.missing(span.file, chunk)
                self.at[span.file, chunk] = At.FETCH
        again = span.first if self.plan(span.file).whole and stop < span.stop else stop
        for chunk in range(again, span.stop):
            self.at[span.file, chunk] = At.CHECK if span.work is Work.CHECK else At.FETCH
        self.schedule.ended(span, stop)

    def files_where(self, *states: At) -> list[int]:
        """Files that have chunks, all of them in one of these states, and no span out."""
        files = [file for file in range(len(self.plans)) if self.chunks(file) and not self.is_out(file)]
        return [file for file in files if all(self.at[file, chunk] in states for chunk in self.chunks(file))]

    @precondition(lambda self: self.files_where(At.DONE))
    @rule(which=st.integers(0, 100))
    def restart(self, which: int) -> None:
        done = self.files_where(At.DONE)
        self.restart_file(done[which % len(done)])

    def restart_file(self, file: int) -> None:
        self.schedule.restart(file)
        for chunk in self.chunks(file):
            self.at[file, chunk] = At.FETCH

    @precondition(lambda self: any(self.plan(span.file).whole for span in self.out))
    @rule(which=st.integers(0, 100))
    def restart_whole(self, which: int) -> None:
        """As a worker does whose connection broke: while its span is still out."""
        whole = [span for span in self.out if self.plan(span.file).whole]
        span = whole[which % len(whole)]
        self.restart_file(span.file)
        assert not any(self.may_go(span.file, chunk) for chunk in self.chunks(span.file))
        self.take(4)
        self.schedule.ended(span, span.stop)
        self.out.remove(span)

    @precondition(lambda self: self.files_where(At.CHECK, At.FETCH))
    @rule(which=st.integers(0, 100))
    def park(self, which: int) -> None:
        files = self.files_where(At.CHECK, At.FETCH)
        self.schedule.park(files[which % len(files)])
        for chunk in self.chunks(files[which % len(files)]):
            self.at[files[which % len(files)], chunk] = At.PARKED

    @precondition(lambda self: self.files_where(At.PARKED))
    @rule(which=st.integers(0, 100))
    def unpark(self, which: int) -> None:
        parked = self.files_where(At.PARKED)
        file = parked[which % len(parked)]
        self.schedule.unpark(file, self.plan(file).hinted)
        self.reset(parked[which % len(parked)])

    @precondition(lambda self: self.plans)
    @rule(which=st.integers(0, 100), first=st.integers(0, 40), count=st.integers(1, 20))
    def want(self, which: int, first: int, count: int) -> None:
        file = which % len(self.plans)
        self.schedule.want(file, first, first + count)
        for chunk in self.chunks(file):
            if self.plan(file).whole or first <= chunk < first + count:
                self.wanted.add((file, chunk))

    @precondition(lambda self: self.plans)
    @rule(files=st.frozensets(st.integers(0, 4)))
    def prefer(self, files: frozenset[int]) -> None:
        self.schedule.prefer(sorted(files))

    @invariant()
    def left_says_whether_something_waits(self) -> None:
        assert self.schedule.left == any(at in (At.CHECK, At.FETCH) for at in self.at.values())

    def teardown(self) -> None:
        """Whatever happened: ending everything well leads to the end."""
        if not hasattr(self, "schedule"):
            return
        for _ in self.files_where(At.PARKED):
            self.unpark(0)
        for _ in range(len(self.at) + 1):
            self.take(4)
            while self.out:
                self.end(0, 4, frozenset())
            if not self.schedule.left:
                break
        assert set(self.at.values()) <= {At.DONE}
        assert not self.schedule.left


TestSchedule = ScheduleMachine.TestCase
TestSchedule.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)


class CountingOrder(deque[int]):
    looks = 0

    def popleft(self) -> int:
        self.looks += 1
        return super().popleft()


def looks_for(files: int) -> int:
    """Looks at the order that so many small files take; hinted, so that none goes early."""
    schedule = Schedule([PlannedFile(100, hinted=frozenset({0})) for _ in range(files)])
    order = schedule._order = CountingOrder(schedule._order)
    while (span := schedule.take(4)) is not None:
        schedule.ended(span, span.stop)
    return order.looks


def test_many_files_cost_as_much_each_as_few() -> None:
    assert looks_for(10_000) <= 11 * looks_for(1_000)


def test_one_file_after_the_other_and_no_more_open_than_the_window() -> None:
    schedule = Schedule([PlannedFile(CHUNK_BYTES * 4) for _ in range(5)])
    files = [span.file for _ in range(6) if (span := schedule.take(2)) is not None]
    assert files == [0, 1]
    schedule.ended(Span(0, 0, 4, Work.FETCH), 4)
    assert [schedule.take(2), schedule.take(2)] == [Span(2, 0, 4, Work.FETCH), None]


def test_workers_without_a_file_of_their_own_share_one_in_shrinking_spans() -> None:
    schedule = Schedule([PlannedFile(CHUNK_BYTES * 64), PlannedFile(CHUNK_BYTES * 64)])
    spans = [schedule.take(6) for _ in range(6)]
    assert [span.file for span in spans if span is not None] == [0, 1, 0, 1, 0, 1]
    assert [len(span.chunks) for span in spans if span is not None] == [16, 16, 8, 8, 5, 5]


def test_what_others_wait_for_goes_before_the_rest_but_after_heads() -> None:
    schedule = Schedule([PlannedFile(CHUNK_BYTES * 4), PlannedFile(CHUNK_BYTES * 4, leads=True), PlannedFile(CHUNK_BYTES * 4)])
    schedule.prefer([2])
    taken = [schedule.take(1), schedule.take(1)]
    assert taken == [Span(1, 0, 1, Work.FETCH), Span(2, 0, 4, Work.FETCH)]


def test_the_same_want_again_costs_nothing() -> None:
    schedule = Schedule([PlannedFile(CHUNK_BYTES * 64)])
    for _ in range(1000):
        schedule.want(0, 3, 9)
    assert schedule._todo[0].wanted == [(3, 9)]
    assert len(schedule._wanted) == 1


def test_files_of_others_keep_their_place_and_come_back() -> None:
    schedule = Schedule([PlannedFile(CHUNK_BYTES * 2), PlannedFile(CHUNK_BYTES * 2)])
    schedule.park(0)
    first = schedule.take(1)
    assert first is not None
    assert first.file == 1
    assert schedule.take(1) is None
    schedule.unpark(0, ())
    schedule.ended(first, first.stop)
    second = schedule.take(1)
    assert second == Span(0, 0, 2, Work.FETCH)


def test_wanted_spans_begin_small_and_grow() -> None:
    schedule = Schedule([PlannedFile(300 * CHUNK_BYTES)])
    schedule.want(0, 0, 300)
    sizes = []
    while (span := schedule.take(4)) is not None:
        sizes.append(len(span.chunks))
        schedule.ended(span, span.stop)
    assert sizes[:WANTED_SHARE] == [1] * WANTED_SHARE
    assert sizes[:-1] == sorted(sizes[:-1])
    assert max(sizes) == SPAN_CHUNKS
    assert sum(sizes) == 300
