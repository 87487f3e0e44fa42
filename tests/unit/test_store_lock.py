from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelcache.errors import Cancelled, StoreBusy
from modelcache.patience import Cancellation
from modelcache.store.layout import Layout
from modelcache.store.lock import StoreLock
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import ref_of, wanted
from modelcache.testing.store_fixtures import NO_LIMITS

LONG_S = 60.0
FILES = {"w": b"weights"}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(LocalStore(tmp_path / "root", NO_LIMITS).root)


def locks(layout: Layout, timeout_s: float = LONG_S) -> StoreLock:
    return StoreLock(layout, timeout_s=timeout_s, room_timeout_s=timeout_s)


def test_many_share_it(layout: Layout) -> None:
    together = threading.Barrier(4)

    def share() -> None:
        with locks(layout).shared():
            together.wait(LONG_S)

    with ThreadPoolExecutor(4) as pool:
        for task in [pool.submit(share) for _ in range(4)]:
            task.result(LONG_S)


@pytest.mark.parametrize(
    ("outer", "inner"), [("exclusive", "shared"), ("exclusive", "exclusive"), ("shared", "exclusive"), ("room", "room")]
)
def test_who_comes_too_late_is_told(layout: Layout, outer: str, inner: str) -> None:
    with getattr(locks(layout), outer)(), pytest.raises(StoreBusy, match="lock"), getattr(locks(layout, 0.01), inner)():
        pass
    with getattr(locks(layout, 0.01), inner)():
        pass


def test_who_waits_for_another_who_reserves_can_be_cancelled(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "root", NO_LIMITS)
    cancel = Cancellation()
    cancel.cancel()
    with locks(Layout(store.root)).room(), pytest.raises(Cancelled):
        store.ingest(ref_of(FILES).key, wanted(FILES), cancel)
    assert list(Layout(store.root).ingests.iterdir()) == []
    store.ingest(ref_of(FILES).key, wanted(FILES)).discard()


def test_room_does_not_wait_for_the_store_lock(layout: Layout) -> None:
    with locks(layout).exclusive(), locks(layout, 0.01).room():
        pass


def test_a_stream_of_shared_holders_starves_nobody(layout: Layout) -> None:
    """Each holder stays until the next one is in: without the turnstile the lock would never be free."""
    stop = threading.Event()
    entered = threading.Condition()
    count = 0

    def hold() -> None:
        nonlocal count
        with locks(layout).shared(), entered:
            count += 1
            mine = count
            entered.notify_all()
            entered.wait_for(lambda: count > mine or stop.is_set(), timeout=0.1)

    def stream() -> None:
        while not stop.is_set():
            hold()

    with ThreadPoolExecutor(6) as pool:
        tasks = [pool.submit(stream) for _ in range(6)]
        try:
            for _ in range(5):
                with locks(layout, 10.0).exclusive():
                    pass
        finally:
            stop.set()
        for task in tasks:
            task.result(LONG_S)


def test_exclusive_is_alone(layout: Layout) -> None:
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with locks(layout).exclusive():
                inside += 1
                most = max(most, inside)
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        for task in [pool.submit(work) for _ in range(4)]:
            task.result(LONG_S)
    assert most == 1


def test_a_child_that_inherited_the_lock_does_not_keep_it(layout: Layout) -> None:
    with locks(layout).exclusive():
        fds = [int(name) for name in os.listdir("/proc/self/fd") if _target(name) in map(str, layout.locks)]
        assert fds
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=fds)
    try:
        with locks(layout, 5.0).exclusive():
            pass
    finally:
        child.communicate(b"\n", timeout=LONG_S)


def test_the_lock_is_flock_of_the_documented_file(layout: Layout) -> None:
    with layout.lock.open("rb") as other, locks(layout).shared():
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _target(name: str) -> str:
    try:
        return str(Path("/proc/self/fd", name).readlink())
    except FileNotFoundError:
        return ""
