"""What a call that lasts tells a client that reads slowly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import cast

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonset import telling
from daemonset.telling import told
from modelcache.errors import Cancelled
from modelcache.patience import Cancellation

Look = tuple[int, int]
"""A subject, and how far it is."""


class Context:
    """Of a call whose client is there until it goes."""

    def __init__(self) -> None:
        self.go: Callable[[], None] = lambda: None

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.go = callback
        return True


def context() -> grpc.ServicerContext:
    return cast(grpc.ServicerContext, Context())


@given(looks=st.lists(st.tuples(st.integers(0, 3), st.integers()), max_size=60))
def test_who_reads_late_hears_the_newest_of_each_subject_and_the_end(looks: list[Look]) -> None:
    begun, done = threading.Event(), threading.Event()

    def run(tell: Callable[[Look], None], cancel: Cancellation) -> str:
        tell((9, 0))
        assert begun.wait(10)
        for each in looks:
            tell(each)
        done.set()
        return "the end"

    said = told(run, context(), lambda look: look[0])
    assert next(said) == (9, 0)
    begun.set()
    assert done.wait(10)
    heard = list(said)
    newest = dict(looks)
    assert heard[-1] == "the end"
    assert dict(cast(list[Look], heard[:-1])) == newest
    assert len(heard) == len(newest) + 1  # and not one for each that was told


def test_an_error_comes_after_all_that_was_told() -> None:
    def run(tell: Callable[[str], None], cancel: Cancellation) -> str:
        tell("first")
        tell("second")
        raise ValueError("the end")

    said = told(run, context(), str)
    assert [next(said), next(said)] == ["first", "second"]
    with pytest.raises(ValueError, match="the end"):
        next(said)


def test_what_was_told_last_is_told_again_while_there_is_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "HEARTBEAT_S", 0.01)
    heard = threading.Event()

    def run(tell: Callable[[str], None], cancel: Cancellation) -> str:
        tell("so far")
        assert heard.wait(10)
        return "the end"

    said = told(run, context())
    assert [next(said) for _ in range(3)] == ["so far"] * 3
    heard.set()
    assert list(said)[-1] == "the end"


def test_a_client_that_goes_ends_the_work() -> None:
    gone = Context()

    def run(tell: Callable[[str], None], cancel: Cancellation) -> str:
        tell("so far")
        cancel.wait(10)
        return "nobody asked for it to its end"

    said = told(run, cast(grpc.ServicerContext, gone))
    assert next(said) == "so far"
    gone.go()
    with pytest.raises(Cancelled):
        list(said)
    assert not [each for each in threading.enumerate() if each.name == "agent call"]
