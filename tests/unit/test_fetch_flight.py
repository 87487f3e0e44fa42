from __future__ import annotations

import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from modelcache.errors import Cancelled
from modelcache.fetch.flight import SingleFlight
from modelcache.patience import Cancellation
from tests.unit.instants import Instants

DEADLINE_S = 20.0


class Doing:
    """Something to do that waits until it is let go or cancelled; knows how often it was begun and ended."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.cancelled = threading.Event()
        self.linger = threading.Event()
        self.linger.set()
        self.count = 0

    def __call__(self, cancel: Cancellation) -> str:
        self.count += 1
        self.begun.release()
        woken = threading.Event()
        with cancel.on_cancel(woken.set):
            for _ in range(int(DEADLINE_S / 0.01)):
                if self.go.is_set() or woken.wait(0.01):
                    break
        if cancel.requested:
            self.cancelled.set()
            assert self.linger.wait(DEADLINE_S)
        cancel.check()
        return f"value {self.count}"


class Looks:
    """Tells when so many callers have looked."""

    def __init__(self, callers: int) -> None:
        self._all = threading.Barrier(callers + 1)
        self._local = threading.local()

    def __call__(self) -> None:
        if not hasattr(self._local, "seen"):
            self._local.seen = True
            self._all.wait(DEADLINE_S)

    def await_all(self) -> None:
        self._all.wait(DEADLINE_S)


def test_callers_of_one_key_share_one_doing() -> None:
    flights: SingleFlight[str, str] = SingleFlight("test")
    doing, looks = Doing(), Looks(8)
    with ThreadPoolExecutor(9) as threads:
        waiting = [threads.submit(flights.run, "a", doing, look=looks) for _ in range(8)]
        looks.await_all()
        other = threads.submit(flights.run, "b", lambda cancel: "other")
        assert other.result(DEADLINE_S) == "other"
        doing.go.set()
        assert {future.result(DEADLINE_S) for future in waiting} == {"value 1"}
    assert flights.run("a", doing) == "value 2"  # ended: the next one is a new doing


def test_everyone_gets_the_error_and_the_next_call_starts_anew() -> None:
    flights: SingleFlight[str, str] = SingleFlight("test")
    looks, go = Looks(3), threading.Event()

    def fail(cancel: Cancellation) -> str:
        assert go.wait(DEADLINE_S)
        raise OSError("the disk is on fire")

    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(flights.run, "a", fail, look=looks) for _ in range(3)]
        looks.await_all()
        go.set()
        for future in waiting:
            with pytest.raises(OSError, match="on fire"):
                future.result(DEADLINE_S)
    assert flights.run("a", lambda cancel: "fine") == "fine"


def test_one_caller_leaves_and_the_others_stay() -> None:
    flights: SingleFlight[str, str] = SingleFlight("test")
    doing, looks, cancel = Doing(), Looks(3), Cancellation()
    with ThreadPoolExecutor(3) as threads:
        leaver = threads.submit(flights.run, "a", doing, cancel=cancel, look=looks)
        stayers = [threads.submit(flights.run, "a", doing, look=looks) for _ in range(2)]
        looks.await_all()
        cancel.cancel()
        with pytest.raises(Cancelled):
            leaver.result(DEADLINE_S)
        assert not doing.cancelled.is_set()
        doing.go.set()
        assert {future.result(DEADLINE_S) for future in stayers} == {"value 1"}


def test_the_last_to_leave_ends_it_and_waits_for_its_end() -> None:
    flights: SingleFlight[str, str] = SingleFlight("test")
    doing, cancel = Doing(), Cancellation()
    doing.linger.clear()
    with ThreadPoolExecutor(1) as threads:
        leaver = threads.submit(flights.run, "a", doing, cancel=cancel)
        assert doing.begun.acquire(timeout=DEADLINE_S)
        cancel.cancel()
        assert doing.cancelled.wait(DEADLINE_S)
        assert not leaver.done()
        doing.linger.set()
        with pytest.raises(Cancelled):
            leaver.result(DEADLINE_S)


def test_who_comes_while_it_is_being_cancelled_gets_a_new_one() -> None:
    """And not somebody else's cancellation."""
    flights: SingleFlight[str, str] = SingleFlight("test")
    doing, cancel = Doing(), Cancellation()
    doing.linger.clear()
    with ThreadPoolExecutor(3) as threads:
        leaver = threads.submit(flights.run, "a", doing, cancel=cancel)
        assert doing.begun.acquire(timeout=DEADLINE_S)
        cancel.cancel()
        assert doing.cancelled.wait(DEADLINE_S)
        impatient, impatience = threading.Event(), Cancellation()

        def come_and_go() -> str:
            impatient.set()
            return flights.run("a", doing, cancel=impatience)

        comer = threads.submit(flights.run, "a", doing)
        goer: Future[str] = threads.submit(come_and_go)
        assert impatient.wait(DEADLINE_S)
        impatience.cancel()
        with pytest.raises(Cancelled):
            goer.result(DEADLINE_S)  # although what it would have to wait for has not ended
        doing.go.set()
        doing.linger.set()
        assert comer.result(DEADLINE_S) == "value 2"
        with pytest.raises(Cancelled):
            leaver.result(DEADLINE_S)


def test_nobody_joins_between_the_decision_to_cancel_and_the_cancelling(monkeypatch: pytest.MonkeyPatch) -> None:
    flights: SingleFlight[str, str] = SingleFlight("test")
    doing, cancel = Doing(), Cancellation()
    arrived: list[Future[str]] = []
    real = Cancellation.cancel

    with ThreadPoolExecutor(2) as threads:

        def late(self: Cancellation) -> None:
            if not arrived and self is not cancel:
                arrived.append(threads.submit(flights.run, "a", lambda _: "mine"))
                assert not arrived[0].done()
            real(self)

        leaver = threads.submit(flights.run, "a", doing, cancel=cancel)
        assert doing.begun.acquire(timeout=DEADLINE_S)
        monkeypatch.setattr(Cancellation, "cancel", late)
        cancel.cancel()
        with pytest.raises(Cancelled):
            leaver.result(DEADLINE_S)
        assert arrived[0].result(DEADLINE_S) == "mine"


def test_who_is_cancelled_before_it_comes_begins_nothing() -> None:
    flights: SingleFlight[str, str] = SingleFlight("test")
    doing, cancel = Doing(), Cancellation()
    cancel.cancel()
    with pytest.raises(Cancelled):
        flights.run("a", doing, cancel=cancel)
    assert doing.count == 0


def test_a_look_that_raises_leaves_like_a_cancelled_caller() -> None:
    flights: SingleFlight[str, str] = SingleFlight("test")
    doing = Doing()

    def look() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        flights.run("a", doing, look=look)
    assert doing.cancelled.is_set()


def test_join_cancels_what_is_in_the_air_and_waits() -> None:
    flights: SingleFlight[str, str] = SingleFlight("test")
    doings = [Doing(), Doing()]
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(flights.run, str(number), doing) for number, doing in enumerate(doings)]
        for doing in doings:
            assert doing.begun.acquire(timeout=DEADLINE_S)
        flights.join()
        assert all(doing.cancelled.is_set() for doing in doings)
        for future in waiting:
            with pytest.raises(Cancelled):
                future.result(DEADLINE_S)
    flights.join()


def test_a_thread_that_cannot_be_had_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    flights: SingleFlight[str, str] = SingleFlight("test")

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            flights.run("a", lambda cancel: "never")
    assert flights.run("a", lambda cancel: "fine") == "fine"


def test_who_is_interrupted_while_the_thread_begins_leaves_nothing_in_the_air(monkeypatch: pytest.MonkeyPatch) -> None:
    flights: SingleFlight[str, str] = SingleFlight("test")
    start, told = threading.Thread.start, threading.Event()

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    def until_cancelled(cancel: Cancellation) -> str:
        with cancel.on_cancel(told.set):
            assert told.wait(DEADLINE_S)
        return "cancelled"

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            flights.run("a", until_cancelled)
    assert told.wait(DEADLINE_S)
    assert flights.run("a", lambda cancel: "fine") == "fine"


def test_ctrl_c_leaves_no_lock_that_the_doing_waits_for() -> None:
    flights: SingleFlight[str, int] = SingleFlight("counting")
    going: queue.SimpleQueue[int] = queue.SimpleQueue()
    instants = Instants()
    with instants:
        assert flights.run("k", lambda cancel: going.get(timeout=DEADLINE_S), look=lambda: going.put(1)) == 1
    assert (instants.count > 0, instants.locks) == (True, [])
