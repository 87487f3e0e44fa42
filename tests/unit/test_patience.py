"""Deadlines and cancellation: seen by all, each callback once, from any thread and in the middle of anything."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from modelcache.errors import Cancelled
from modelcache.patience import Cancellation, Deadline

LONG_S = 60.0


def finished(*works: Callable[[], object]) -> None:
    """Run these at once in a thread each; fails if one raises or hangs."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        try:
            barrier.wait(LONG_S)
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert not any(thread.is_alive() for thread in threads), "it hangs"
    assert failures == []


def test_deadlines() -> None:
    assert Deadline.after(-1).passed
    assert Deadline.after(-1).remaining_s() == 0.0
    later = Deadline.after(LONG_S)
    assert not later.passed
    assert 0 < later.remaining_s() <= LONG_S
    assert Deadline(time.monotonic() - 1).passed


def test_a_request_stays_and_is_seen() -> None:
    cancel = Cancellation()
    cancel.check()
    cancel.wait(0)
    cancel.wait(-1)
    seen = [cancel.requested]
    cancel.cancel()
    seen.append(cancel.requested)
    cancel.cancel()
    seen.append(cancel.requested)
    assert seen == [False, True, True]
    with pytest.raises(Cancelled):
        cancel.check()
    with pytest.raises(Cancelled):
        cancel.wait(LONG_S)


def test_every_waiting_thread_is_woken() -> None:
    cancel = Cancellation()
    waiting = threading.Barrier(5)

    def wait() -> None:
        waiting.wait(LONG_S)
        with pytest.raises(Cancelled):
            cancel.wait(LONG_S * 10)

    def ask() -> None:
        waiting.wait(LONG_S)
        cancel.cancel()

    finished(wait, wait, wait, wait, ask)


def test_callbacks_run_once_and_only_inside_their_block() -> None:
    cancel, calls = Cancellation(), list[str]()
    with cancel.on_cancel(lambda: calls.append("over")):
        pass
    with cancel.on_cancel(lambda: calls.append("outer")):
        with pytest.raises(ZeroDivisionError), cancel.on_cancel(lambda: calls.append("left by an error")):
            _ = 1 / 0
        with cancel.on_cancel(lambda: calls.append("inner")):
            cancel.cancel()
            assert sorted(calls) == ["inner", "outer"]
            cancel.cancel()
    with cancel.on_cancel(lambda: calls.append("late")):
        assert calls[-1] == "late"
    assert sorted(calls) == ["inner", "late", "outer"]


def test_a_callback_may_cancel_again_and_register() -> None:
    cancel, calls = Cancellation(), list[str]()

    def again() -> None:
        calls.append("again")
        cancel.cancel()
        with cancel.on_cancel(lambda: calls.append("nested")):
            pass

    with cancel.on_cancel(again):
        cancel.cancel()
    assert calls == ["again", "nested"]


def test_racing_cancels_and_blocks_never_lose_a_callback() -> None:
    for _ in range(200):
        cancel = Cancellation()
        calls: list[int] = []
        seen_inside: list[bool] = []

        def block(cancel: Cancellation = cancel, calls: list[int] = calls, seen: list[bool] = seen_inside) -> None:
            called = threading.Event()

            def callback() -> None:
                calls.append(1)
                called.set()

            with cancel.on_cancel(callback):
                seen.append(called.wait(LONG_S))

        finished(block, cancel.cancel, block, cancel.cancel, block)
        assert seen_inside == [True] * 3
        assert len(calls) == 3, "a callback ran twice or not at all"


@pytest.mark.parametrize("work", ["cancel", "wait", "on_cancel", "check"])
def test_a_signal_handler_may_cancel_at_any_instruction(work: str) -> None:
    """A handler runs in the interrupted thread, so whatever lock it needs may be held by what it interrupted.

    Each round interrupts the call one bytecode later than the round before.
    """

    def interrupted_at(step: int) -> bool:
        cancel, calls = Cancellation(), list[str]()
        left = step

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal left
            frame.f_trace_opcodes = True
            if event == "opcode":
                left -= 1
                if left == 0:
                    sys.settrace(None)
                    cancel.cancel()
            return trace

        def call() -> None:
            with cancel.on_cancel(lambda: calls.append("outer")):
                sys._getframe().f_trace_opcodes = True  # Python 3.12 asks at settrace whether any frame wants them
                sys.settrace(trace)
                try:
                    {"cancel": cancel.cancel, "wait": lambda: cancel.wait(0), "check": cancel.check}.get(work, register)()
                except Cancelled:
                    pass
                finally:
                    sys.settrace(None)

        def register() -> None:
            with cancel.on_cancel(lambda: calls.append("inner")):
                pass

        finished(call)
        if left <= 0:
            assert cancel.requested
            assert calls.count("outer") == 1
            assert calls.count("inner") <= 1
        return left <= 0

    step = 1
    while interrupted_at(step):
        step += 1
    assert step > 5, "the call was hardly interrupted"
