"""Which bytes to fetch next. Pure: no threads, no clock, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum

from modelcache.chunks import chunk_count

SPAN_CHUNKS = 16
"""Longest span one request asks for: 64 MiB. Longer ones would save less than 1 % of requests' cost at 100 ms a request and 1 GiB/s,
and would keep a waiting model's first request behind them for longer on origins that can't be broken off."""


WANTED_SHARE = 8
"""A wanted span has an eighth of the chunks that were handed out as wanted before it, one at least: a reader who begins gets what it asks
for first over all connections together, and has lost little when spans are long."""


class Priority(IntEnum):
    """Who is served first; lower is sooner."""

    WAITING = 0
    PREWARM = 1
    REPAIR = 2


class Work(StrEnum):
    CHECK = "check"
    """Read back what an interrupted fetch left and compare it with its journal."""
    FETCH = "fetch"


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file to bring in.

    Attributes:
        whole: only one request from start to end can serve it.
        leads: its first chunk is wanted before other bytes (the header of a safetensors file tells what comes).
        hinted: chunks that an interrupted fetch may have left.
    """

    size_bytes: int
    whole: bool = False
    leads: bool = False
    hinted: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Span:
    """Chunks `first` to `stop` (excluded) of file number `file`: the work of one request."""

    file: int
    first: int
    stop: int
    work: Work

    @property
    def chunks(self) -> range:
        return range(self.first, self.stop)


@dataclass(slots=True)
class _Todo:
    """What is left of one file: chunks not handed out, as sorted disjoint runs.

    Attributes:
        wanted: runs that readers will ask for; they stay, so that chunks given back go first again.
        urgent: those that a reader waits for now; each is a part of a wanted one.
        active: spans of it that are out.
        ordered, queued, hurried: whether it stands in the order, in the queue of wanted files, in that of urgent ones.
    """

    plan: PlannedFile
    fetch: list[tuple[int, int]] = field(default_factory=list)
    check: list[tuple[int, int]] = field(default_factory=list)
    wanted: list[tuple[int, int]] = field(default_factory=list)
    urgent: list[tuple[int, int]] = field(default_factory=list)
    active: int = 0
    ordered: bool = True
    queued: bool = False
    hurried: bool = False

    @property
    def left(self) -> bool:
        return bool(self.fetch or self.check)

    @property
    def ready(self) -> bool:
        """Whether a span of it may go out now; a whole file's only one at a time."""
        return self.left and not (self.plan.whole and self.active)

    @property
    def chunks(self) -> int:
        return chunk_count(self.plan.size_bytes)

    @property
    def most(self) -> int:
        """Chunks that the next span of it may have."""
        return self.chunks if self.plan.whole else max(1, SPAN_CHUNKS // (self.active + 1))

    def next(self, first: int, stop: int) -> int | None:
        """The first chunk inside [first, stop) that waits."""
        return min((at for at in (_next(self.check, first, stop), _next(self.fetch, first, stop)) if at is not None), default=None)

    @property
    def early(self) -> bool:
        """Whether its first chunk goes before other bytes, and waits to be fetched."""
        first = self.chunks == 1 or (self.plan.leads and not self.plan.whole)
        return first and bool(self.fetch) and self.fetch[0][0] == 0


class Schedule:
    """Hands out the spans of one fetch: what a reader waits for, what readers will want, then small files and heads, then file order.
    Not thread-safe.

    Every chunk is handed out once, unless it is given back. Several spans of one file are out at a time only when there are
    fewer files than workers, or one is waited for; they shrink as they get more, so that what is ahead of the hash stays small. A
    call costs as much as the window is wide, however many files there are.
    """

    def __init__(self, files: Sequence[PlannedFile | None]) -> None:
        """`files[i]` is None for a file that is here already."""
        self._todo = {i: _todo(plan) for i, plan in enumerate(files) if plan is not None and plan.size_bytes > 0}
        self._early = deque(i for i, todo in self._todo.items() if todo.early)
        self._order = deque(self._todo)
        self._wanted: deque[int] = deque()
        self._urgent: deque[int] = deque()
        self._wanted_chunks = 0
        self._with_work = set(self._todo)

    @property
    def left(self) -> bool:
        """Whether anything waits to be handed out."""
        return bool(self._with_work)

    def take(self, window_files: int) -> Span | None:
        """The next span, or None when nothing can go out now. At most about `window_files` files are open at a time."""
        window_files = max(1, window_files)
        return self._take_urgent() or self._take_wanted(window_files) or self._take_early() or self._take_body(window_files)

    def ended(self, span: Span, stop: int) -> None:
        """A span is over; its chunks before `stop` are done, the others wait again (of a whole file, all of them)."""
        todo = self._todo[span.file]
        todo.active -= 1
        if stop < span.stop:
            _put(todo.check if span.work is Work.CHECK else todo.fetch, 0 if todo.plan.whole else stop, span.stop)
        self._again(span.file)

    def missing(self, file: int, chunk: int) -> None:
        """A checked chunk was not what its journal said: fetch it."""
        _put(self._todo[file].fetch, chunk, chunk + 1)
        self._again(file)

    def restart(self, file: int) -> None:
        """All of a file must come again; no chunk of it is on its way."""
        todo = self._todo[file]
        todo.check, todo.fetch = [], [(0, todo.chunks)]
        self._again(file)

    def park(self, file: int) -> None:
        """Somebody else brings this file; hand nothing of it out (yet)."""
        todo = self._todo[file]
        todo.check, todo.fetch = [], []
        self._with_work.discard(file)

    def unpark(self, file: int, hinted: Collection[int]) -> None:
        """Nobody else brings it after all: as at the start, but for what an interrupted fetch may have left by now."""
        todo = _todo(replace(self._todo[file].plan, hinted=frozenset(hinted)))
        self._todo[file].check, self._todo[file].fetch = todo.check, todo.fetch
        self._again(file)

    def want(self, file: int, first: int, stop: int, *, now: bool = False) -> None:
        """A reader will ask for these chunks: they go before what nobody wants (with all of their file, if only one request can serve it),
        several files at a time. `now`: it waits for them, and they go before all others."""
        todo = self._todo.get(file)
        if todo is not None:
            whole = todo.plan.whole
            run = 0 if whole else first, todo.chunks if whole else min(stop, todo.chunks)
            todo.wanted = _merged([*todo.wanted, run])
            if now:
                todo.urgent = _merged([*todo.urgent, run])
            self._queue(file)

    def prefer(self, files: Collection[int]) -> None:
        """Others wait for these files: they go before the rest of the order."""
        ahead = [file for file in files if file in self._todo]
        moved = set(ahead)
        self._order = deque([*ahead, *(file for file in self._order if file not in moved)])
        for file in ahead:
            self._todo[file].ordered = True

    def _again(self, file: int) -> None:
        """Something of this file may have come to wait: it stands wherever the next look finds it."""
        todo = self._todo[file]
        if not todo.left:
            return
        self._with_work.add(file)
        if not todo.ordered:
            todo.ordered = True
            self._order.append(file)
        if todo.early:
            self._early.append(file)
        self._queue(file)

    def _queue(self, file: int) -> None:
        todo = self._todo[file]
        if todo.wanted and todo.left and not todo.queued:
            todo.queued = True
            self._wanted.append(file)
        if todo.urgent and todo.left and not todo.hurried:
            todo.hurried = True
            self._urgent.append(file)

    def _take_urgent(self) -> Span | None:
        """What is waited for, and what is wanted right behind it: its reader asks for that next."""
        while self._urgent:
            file = self._urgent[0]
            todo = self._todo[file]
            for first, stop in todo.urgent if todo.ready else ():
                begin = todo.next(first, stop)
                if begin is not None:
                    return self._cut_wanted(file, begin, next(end for start, end in todo.wanted if start <= begin < end))
            self._urgent.popleft()
            todo.hurried = False
        return None

    def _take_wanted(self, window_files: int) -> Span | None:
        looked: list[tuple[int, int, int]] = []
        while self._wanted and len(looked) < window_files:
            file = self._wanted.popleft()
            todo = self._todo[file]
            run = next((run for run in todo.wanted if todo.next(*run) is not None), None)
            if run is not None and todo.ready:
                looked.append((file, *run))
            else:
                todo.queued = False
        self._wanted.extendleft(file for file, _, _ in reversed(looked))
        if not looked:
            return None
        return self._cut_wanted(*min(looked, key=lambda each: self._todo[each[0]].active))

    def _cut_wanted(self, file: int, first: int, stop: int) -> Span | None:
        todo = self._todo[file]
        most = todo.most if todo.plan.whole else max(1, min(todo.most, self._wanted_chunks // WANTED_SHARE))
        begin = todo.next(first, stop)
        for runs, work in ((todo.check, Work.CHECK), (todo.fetch, Work.FETCH)):
            got = None if begin is None or _next(runs, begin, begin + 1) is None else _cut(runs, begin, stop, most)
            if got is not None:
                self._wanted_chunks += got[1] - got[0]
                return self._out(file, got, work)
        return None

    def _take_early(self) -> Span | None:
        while self._early:
            file = self._early.popleft()
            todo = self._todo[file]
            got = _cut(todo.fetch, 0, 1, 1) if todo.ready else None
            if got is not None:
                return self._out(file, got, Work.FETCH)
        return None

    def _take_body(self, window_files: int) -> Span | None:
        looked: list[int] = []
        while self._order and len(looked) < window_files:
            file = self._order.popleft()
            todo = self._todo[file]
            if todo.left or todo.active:
                looked.append(file)
            else:
                todo.ordered = False
        self._order.extendleft(reversed(looked))
        ready = [file for file in looked if self._todo[file].ready]
        if not ready:
            return None
        best = min(ready, key=lambda file: self._todo[file].active)
        todo = self._todo[best]
        runs, work = (todo.check, Work.CHECK) if todo.check else (todo.fetch, Work.FETCH)
        got = _cut(runs, 0, todo.chunks, todo.most)
        assert got is not None
        return self._out(best, got, work)

    def _out(self, file: int, run: tuple[int, int], work: Work) -> Span:
        self._todo[file].active += 1
        if not self._todo[file].left:
            self._with_work.discard(file)
        return Span(file, run[0], run[1], work)


def _todo(plan: PlannedFile) -> _Todo:
    todo = _Todo(plan)
    hinted = frozenset() if plan.whole else plan.hinted
    for chunk in range(chunk_count(plan.size_bytes)):
        _put(todo.check if chunk in hinted else todo.fetch, chunk, chunk + 1)
    return todo


def _put(runs: list[tuple[int, int]], first: int, stop: int) -> None:
    """Add a run that overlaps none of `runs`, joining it with its neighbours."""
    at = len(runs)
    while at > 0 and runs[at - 1][0] >= stop:
        at -= 1
    runs.insert(at, (first, stop))
    if at + 1 < len(runs) and runs[at + 1][0] == stop:
        runs[at : at + 2] = [(first, runs[at + 1][1])]
    if at > 0 and runs[at - 1][1] == first:
        runs[at - 1 : at + 1] = [(runs[at - 1][0], runs[at][1])]


def _merged(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same chunks as sorted runs that neither overlap nor touch."""
    merged: list[tuple[int, int]] = []
    for first, stop in sorted(runs):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((first, stop))
    return merged


def _next(runs: list[tuple[int, int]], first: int, stop: int) -> int | None:
    """The first chunk that `runs` has inside [first, stop)."""
    return next((max(run_first, first) for run_first, run_stop in runs if max(run_first, first) < min(run_stop, stop)), None)


def _cut(runs: list[tuple[int, int]], first: int, stop: int, most: int) -> tuple[int, int] | None:
    """Take the first up to `most` chunks that `runs` has inside [first, stop)."""
    for at, (run_first, run_stop) in enumerate(runs):
        low = max(run_first, first)
        high = min(run_stop, stop, low + most)
        if low >= high:
            continue
        rest = [(a, b) for a, b in ((run_first, low), (high, run_stop)) if a < b]
        runs[at : at + 1] = rest
        return low, high
    return None
