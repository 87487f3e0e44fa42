"""A small real disk: refused before the first byte or stopped with numbers, nothing lost, room given back, limits kept by all together."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelcache.abc.snapshot import RefKey, Snapshot
from modelcache.abc.store import Limits
from modelcache.chunks import CHUNK_BYTES
from modelcache.ensure import Ensure
from modelcache.errors import NoSpace
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.plan import Priority
from modelcache.patience import Cancellation
from modelcache.store import durable
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.crash_bench import LATER_S, NO_LIMITS
from modelcache.testing.fetching import place, running_engine
from modelcache.testing.memory_source import MemorySource, state_sha256
from modelcache.testing.small_filesystem import Kind
from modelcache.testing.store_filling import content
from modelcache.units import MIB
from tests.conftest import SmallDisk

pytestmark = pytest.mark.root
DISK_BYTES = 64 * MIB
WORKERS = 2
MANY = 30
"""Models that 8 callers ask for, each an eighth of the limit or so."""
Files = Mapping[str, bytes]


def model(seed: int, size_bytes: int) -> Files:
    """Of two large files, of which the second is half the size of the first, and a small and an empty one."""
    large = content(size_bytes, seed)
    third = size_bytes // 3
    return {"a.safetensors": large[third:], "b.safetensors": large[:third], "config.json": b'{"seed": %d}' % seed, "empty": b""}


def origin(files: Files, name: str) -> MemorySource:
    """A server of its own: what one calls a version says nothing of another's."""
    return MemorySource(files, endpoint=f"memory://{name}:1")


@dataclass
class Machine:
    """A store on a small disk, and an engine."""

    disk: Path
    store: LocalStore
    engine: FetchEngine

    def ensure(self, source: MemorySource, name: str) -> Snapshot:
        return Ensure(self.store, self.engine, source, place(name), priority=Priority.WAITING, route=None).run(Cancellation()).snapshot

    def free_bytes(self) -> int:
        found = os.statvfs(self.disk)
        return found.f_bavail * found.f_frsize

    @property
    def block_bytes(self) -> int:
        return os.statvfs(self.disk).f_frsize

    def blocks(self, files: Files) -> int:
        """What these files take on the disk."""
        return sum(-(-len(data) // self.block_bytes) * self.block_bytes for data in files.values())

    def tree(self) -> list[tuple[str, int, int]]:
        """Path, size and inode of everything in the store."""
        paths = sorted(self.store.root.rglob("*"))
        return [(str(path.relative_to(self.store.root)), path.lstat().st_size, path.lstat().st_ino) for path in paths]

    def fill_up(self) -> Path:
        """Another program takes every free block."""
        hog = self.disk / "hog"
        with hog.open("wb", buffering=0) as file:
            for size_bytes in (MIB, 64 << 10, self.block_bytes, 1):
                try:
                    while True:
                        file.write(bytes(size_bytes))
                except OSError:
                    continue
        return hog

    def settle(self) -> None:
        with LocalStore(self.store.root, NO_LIMITS, clock=lambda: 4e9 + LATER_S) as store:
            store.collect()
        assert audit(self.store.root, Moment.SETTLED) == []


MakeMachine = Callable[[Limits], Machine]


@pytest.fixture(params=[Kind.EXT4, Kind.TMPFS])
def machine_of(small_disk: SmallDisk, request: pytest.FixtureRequest) -> Iterator[MakeMachine]:
    disk = small_disk(size_bytes=DISK_BYTES, kind=request.param)
    with running_engine(WORKERS) as engine:
        yield lambda limits: Machine(disk, LocalStore(disk / "store", limits), engine)


def shows(snapshot: Snapshot) -> Files:
    return {str(path.relative_to(snapshot.path)): path.read_bytes() for path in snapshot.path.rglob("*") if path.is_file()}


# -- refused ----------------------------------------------------------------------------------------------------------


def test_a_model_larger_than_the_disk_is_refused_before_its_first_byte(machine_of: MakeMachine) -> None:
    machine = machine_of(NO_LIMITS)
    kept = model(1, 8 * MIB)
    machine.ensure(origin(kept, "kept"), "kept")
    [held] = machine.store.list()
    machine.store.pin(held.digest, holder="somebody")
    before, free_bytes = machine.tree(), machine.free_bytes()
    huge = model(2, 80 * MIB)
    source = origin(huge, "huge")
    with pytest.raises(NoSpace) as caught:
        machine.ensure(source, "huge")
    error = caught.value
    assert (error.needed_bytes, error.evictable_bytes, error.held_bytes) == (machine.blocks(huge), 0, machine.blocks(kept))
    assert free_bytes - 16 * machine.block_bytes <= error.available_bytes <= free_bytes
    assert not source.books.bytes
    assert (machine.tree(), machine.free_bytes()) == (before, free_bytes)


@pytest.mark.parametrize(
    ("limits", "most_bytes"),
    [
        (Limits(max_bytes=20 * MIB, high_watermark=1.0, low_watermark=1.0), 20 * MIB),
        (Limits(max_bytes=None, high_watermark=0.5, low_watermark=0.4), DISK_BYTES // 2),
    ],
    ids=["max_bytes", "watermark"],
)
def test_many_at_once_stay_under_the_limit_together(machine_of: MakeMachine, limits: Limits, most_bytes: int) -> None:
    machine = machine_of(limits)
    empty_bytes = machine.free_bytes()
    models = {f"m{seed}": model(seed, 3 * MIB) for seed in range(MANY)}
    sources = {name: origin(files, name) for name, files in models.items()}
    seen: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            seen.append(empty_bytes - machine.free_bytes())

    def ensure(name: str) -> tuple[str, Snapshot | NoSpace]:
        try:
            return name, machine.ensure(sources[name], name)
        except NoSpace as error:
            return name, error

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            todo = [pool.submit(ensure, name) for name in models]
            results = dict(task.result() for task in todo)
    finally:
        stop.set()
        watcher.join()
    seen.append(empty_bytes - machine.free_bytes())
    there = {name: found for name, found in results.items() if isinstance(found, Snapshot)}
    assert max(seen) <= most_bytes + MIB, "records and directories are all that may be beyond the limit"
    assert there, "somebody gets in"
    for found in results.values():
        if isinstance(found, NoSpace):
            assert found.needed_bytes == machine.blocks(models["m0"])
            assert found.available_bytes + found.evictable_bytes < found.needed_bytes
    for name, snapshot in there.items():
        if machine.store.snapshot(snapshot.digest) is not None:
            assert shows(snapshot) == models[name]
    machine.settle()


# -- evicted ----------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_gives_way_and_a_pinned_one_does_not(machine_of: MakeMachine) -> None:
    machine = machine_of(NO_LIMITS)
    size_bytes = machine.free_bytes() * 3 // 10
    models = {name: model(seed, size_bytes) for seed, name in enumerate(("pinned", "old", "used"))}
    digests = {name: machine.ensure(origin(files, name), name).digest for name, files in models.items()}
    machine.store.pin(digests["pinned"], holder="somebody")
    machine.store.snapshot(digests["used"])
    new = model(9, size_bytes)
    assert shows(machine.ensure(origin(new, "new"), "new")) == new
    assert {name for name in models if machine.store.snapshot(digests[name]) is not None} == {"pinned", "used"}
    machine.store.pin(digests["used"], holder="somebody")
    with pytest.raises(NoSpace) as caught:
        machine.ensure(origin(model(10, size_bytes * 2), "huge"), "huge")
    held_bytes = machine.blocks(models["pinned"]) + machine.blocks(models["used"])
    assert 0 <= caught.value.held_bytes - held_bytes <= 8 * machine.block_bytes, "a file of many extents takes a block for their list"
    assert 0 <= caught.value.evictable_bytes - machine.blocks(new) <= 4 * machine.block_bytes
    assert machine.store.ref(RefKey(str(place("new")), "memory://new:1")) is not None
    machine.settle()


# -- stopped ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_others_fill_up_stops_a_fetch_that_has_its_room(machine_of: MakeMachine) -> None:
    """Its blocks are booked; what is not are directories and records."""
    machine = machine_of(NO_LIMITS)
    empty_bytes = machine.free_bytes()
    files = model(1, 24 * MIB)
    source = MemorySource(files, state=state_sha256)
    gate = source.gate("a.safetensors", CHUNK_BYTES)
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(machine.ensure, source, "model")
        gate.await_readers()
        hog = machine.fill_up()
        gate.open()
        with pytest.raises(NoSpace) as caught:
            task.result()
    assert caught.value.available_bytes < CHUNK_BYTES  # what a file system gives back late is by chance
    assert "the disk filled up" in str(caught.value)
    assert audit(machine.store.root, Moment.CRASHED) == []
    fetched = sum(source.books.bytes.values())
    hog.unlink()
    assert shows(machine.ensure(source, "model")) == files
    assert sum(source.books.bytes.values()) <= len(b"".join(files.values())) + WORKERS * CHUNK_BYTES, f"{fetched} at first"
    machine.store.evict(machine.store.list()[0].digest)
    machine.settle()
    assert machine.free_bytes() >= empty_bytes - 300 * machine.block_bytes, "prefix directories are all that stays"


@contextmanager
def without_fallocate() -> Iterator[None]:
    """A file system that can't book blocks, as ext3 can't."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "fallocate", lambda fd, size_bytes, mode=0: False)
        yield


def test_a_disk_that_others_fill_up_stops_a_fetch_whose_room_is_a_number(machine_of: MakeMachine) -> None:
    machine = machine_of(NO_LIMITS)
    empty_bytes = machine.free_bytes()
    files = model(1, 24 * MIB)
    source = MemorySource(files)
    gate = source.gate("a.safetensors", 2 * CHUNK_BYTES)
    with without_fallocate(), ThreadPoolExecutor(1) as pool:
        task = pool.submit(machine.ensure, source, "model")
        gate.await_readers()
        assert machine.store.usage().available_bytes <= empty_bytes - machine.blocks(files), "promised bytes count as used"
        hog = machine.fill_up()
        gate.open()
        with pytest.raises(NoSpace) as caught:
            task.result()
        assert caught.value.needed_bytes in (CHUNK_BYTES, 0)  # 0: the journal's line of the chunk before was the first to find no room
        assert audit(machine.store.root, Moment.CRASHED) == []
        hog.unlink()
        assert shows(machine.ensure(source, "model")) == files
    assert sum(source.books.bytes.values()) <= len(b"".join(files.values())) + 2 * WORKERS * CHUNK_BYTES
    machine.settle()


def test_a_fetch_that_is_broken_off_keeps_its_chunks_and_gives_the_rest_of_its_room_back(machine_of: MakeMachine) -> None:
    machine = machine_of(NO_LIMITS)
    files = model(1, 24 * MIB)
    source = MemorySource(files)
    cut = 2 * CHUNK_BYTES + 1
    source.cut("a.safetensors", cut, error=NotImplementedError("cut"))
    empty_bytes = machine.free_bytes()
    with pytest.raises(NotImplementedError):
        machine.ensure(source, "model")
    kept_bytes = sum(chunk for chunk in source.books.bytes.values()) // CHUNK_BYTES * CHUNK_BYTES
    assert empty_bytes - machine.free_bytes() <= kept_bytes + MIB
    assert machine.store.usage().ingest_bytes <= kept_bytes + MIB
    assert shows(machine.ensure(source, "model")) == files
    assert sum(source.books.bytes.values()) <= len(b"".join(files.values())) + WORKERS * CHUNK_BYTES
    machine.settle()
