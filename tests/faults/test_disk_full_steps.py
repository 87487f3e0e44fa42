"""A disk that fails from the n-th change on, for every n: the right error, nothing lost, and a sound store once it is mended."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Iterator

import pytest

from modelcache.errors import ModelCacheError, NoSpace, StoreFault, StoreReadOnly
from modelcache.testing.audit import Moment, audit
from modelcache.testing.crash import CHANGES, ROOM_TAKERS, Board, FullDisk, interposed
from modelcache.testing.crash_bench import Bench, chunk_bytes, small_chunks_everywhere, stating_sha256
from tests.faults.chance import quick_directory

MAKERS = ("link", "mkdir", "create", "truncate", "write", "fallocate")
"""What needs a block for certain: a rename within a file system, and flushing what is there, do not."""
DISKS = {
    "full": (errno.ENOSPC, ROOM_TAKERS, NoSpace),
    "over quota": (errno.EDQUOT, MAKERS, NoSpace),
    "broken": (errno.EIO, CHANGES, StoreFault),
    "gone read-only": (errno.EROFS, CHANGES, StoreReadOnly),
}
Disk = tuple[int, tuple[str, ...], type[ModelCacheError]]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with small_chunks_everywhere(), quick_directory() as directory:
        bench = Bench(directory, Board())
        for name in ("first", "second", "third"):
            bench.offer(name)
        yield bench


def fails_at_each(disk: Disk, work: Callable[[], object], after: Callable[[], None]) -> int:
    """Do `work` on a disk that fails from the n-th change on, for every n until it ends well; `after` each failure. How many n."""
    number, refused, kind = disk
    at = 0
    while True:
        at += 1
        failing = FullDisk(at, number, refused)
        error = None
        with interposed(failing):
            try:
                work()
            except ModelCacheError as caught:
                error = caught
        if error is None:
            assert not failing.hit, f"a refused change, number {at}, was passed over"
            return at
        assert (type(error), failing.hit) == (kind, True)
        after()


@pytest.mark.parametrize("disk", DISKS.values(), ids=DISKS)
def test_a_fetch_on_a_disk_that_fails_at_any_step(bench: Bench, disk: Disk) -> None:
    bench.ensure("first")
    clean_bytes = bench.board.fetched_bytes
    shutil.rmtree(bench.root)
    threads = threading.active_count()
    bench.board.clear()

    def after() -> None:
        assert threading.active_count() == threads
        assert audit(bench.root, Moment.CRASHED) == []
        bench.ensure("first")
        assert bench.board.fetched_bytes <= clean_bytes + chunk_bytes(), "what was fetched was lost"
        bench.settle()
        assert audit(bench.root, Moment.SETTLED) == []
        assert bench.shown() == {"first": bench.models["first"]}
        shutil.rmtree(bench.root)
        bench.board.clear()

    assert fails_at_each(disk, lambda: bench.ensure("first"), after) > 30


@pytest.mark.parametrize("disk", DISKS.values(), ids=DISKS)
def test_a_store_on_a_disk_that_fails_at_any_step_of_what_is_done_to_it(bench: Bench, disk: Disk) -> None:
    def work() -> None:
        store = bench.store()
        bench.ensure("first", state=stating_sha256)
        digest = bench.digest(store, "first")
        store.pin(digest, holder="somebody")
        store.release(store.renew(store.lease(digest, holder="a pod", ttl_s=60).id, ttl_s=120).id)
        with store.hold(digest, holder="a process"):
            store.collect()
        store.unpin(digest)
        bench.evict("second")

    def after() -> None:
        assert audit(bench.root, Moment.CRASHED) == []
        shown = bench.shown()
        assert shown["first"] == bench.models["first"]
        assert shown.get("second", bench.models["second"]) == bench.models["second"]
        bench.ensure("second")

    bench.ensure("first")
    bench.ensure("second")
    fails_at_each(disk, work, after)
    store = bench.store()
    store.unpin(bench.digest(store, "first"))
    bench.settle()
    assert audit(bench.root, Moment.SETTLED) == []
    assert bench.shown() == {"first": bench.models["first"]}


def test_eviction_works_on_a_disk_without_a_free_block(bench: Bench) -> None:
    bench.ensure("first")
    bench.ensure("second", state=stating_sha256)
    with interposed(FullDisk(1, errno.ENOSPC, MAKERS)):
        bench.evict("second")
        assert bench.shown() == {"first": bench.models["first"]}
        bench.settle()
    assert audit(bench.root, Moment.SETTLED) == []
