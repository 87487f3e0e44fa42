"""Exports and imports that are cancelled, meet damage or go through a pipe: what is left of them."""

from __future__ import annotations

import errno
import io
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelcache.carry import holding
from modelcache.carry.holding import held_all
from modelcache.carry.importing import ImportReport
from modelcache.chunks import CHUNK_BYTES
from modelcache.digest import Digest
from modelcache.errors import Cancelled, DamagedBlob, InUse, NoSpace
from modelcache.patience import Cancellation
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.store_filling import digest_of, fill, manifest_of
from tests.unit.carry.stores import ONE, SHARED, carried_in, carried_out, flip, shown, tree


class Until(Cancellation):
    """Cancelled at the n-th look. `seen`: names in a directory, at any of them."""

    def __init__(self, looks: int, directory: Path | None = None) -> None:
        super().__init__()
        self.left = looks
        self.seen: set[str] = set()
        self._directory = directory

    def check(self) -> None:
        if self._directory is not None:
            self.seen |= set(os.listdir(self._directory))
        self.left -= 1
        if self.left <= 0:
            self.cancel()
        super().check()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory: files without a name can be had there whatever the disk's file system."""
    with tempfile.TemporaryDirectory(prefix="modelcache-test-", dir="/dev/shm") as made:
        yield Path(made)


@pytest.mark.parametrize("looks", [1, 3, 8, 20])
def test_a_cancelled_import_leaves_nothing(target: LocalStore, file: Path, looks: int) -> None:
    before = tree(target.root)

    with pytest.raises(Cancelled):
        carried_in(target, file, cancel=Until(looks))

    assert tree(target.root) == before


@pytest.mark.parametrize("without_a_name", [True, False])
@pytest.mark.parametrize("looks", [1, 4, 20])
def test_a_cancelled_export_leaves_the_file_that_was_there(
    origin: LocalStore, memory: Path, looks: int, without_a_name: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not without_a_name:
        monkeypatch.setattr(os, "O_TMPFILE", 0)  # as a kernel that doesn't know it
    place = memory / "f.tar"
    place.write_bytes(b"older")
    cancel = Until(looks, memory)

    with pytest.raises(Cancelled):
        carried_out(origin, place, cancel=cancel)

    assert shown(place.parent) == {"f.tar": b"older"}
    assert (cancel.seen == {"f.tar"}) is without_a_name  # and so one that is killed leaves nothing
    carried_out(origin, place)
    assert list(shown(place.parent)) == ["f.tar"]
    assert place.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC])
def test_a_disk_that_has_less_room_than_it_says_is_told_with_what_it_had(
    origin: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Of a quota, and of blocks that are kept for root, statvfs(3) says nothing."""
    left = [100_000]
    write = os.write

    def limited(fd: int, data: memoryview) -> int:
        if left[0] == 0:
            raise OSError(number, os.strerror(number))
        count = write(fd, data[: left[0]])
        left[0] -= count
        return count

    monkeypatch.setattr(os, "write", limited)
    with pytest.raises(NoSpace) as raised:
        carried_out(origin, tmp_path / "f.tar")
    monkeypatch.undo()

    assert raised.value.needed_bytes > raised.value.available_bytes == 100_000
    assert f"after 97.7 KiB there was no room ({os.strerror(number)})" in str(raised.value)
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob("f.tar"))


def test_a_device_without_room_is_told(origin: LocalStore) -> None:
    with pytest.raises(NoSpace, match=r"after 0 B there was no room \(No space left on device\)"):
        carried_out(origin, Path("/dev/full"))


def test_damage_is_not_exported(origin: LocalStore, tmp_path: Path) -> None:
    damaged = origin.root / "snapshots" / manifest_of(ONE).digest.hex / "shared.bin"
    damaged.chmod(0o600)
    flip(damaged, CHUNK_BYTES + 5)

    with pytest.raises(DamagedBlob) as raised:
        carried_out(origin, tmp_path / "f.tar")

    assert raised.value.expected == str(digest_of(SHARED))
    assert not (tmp_path / "f.tar").exists()


def test_a_model_is_held_while_it_is_exported(origin: LocalStore) -> None:
    refused: list[Digest] = []

    class Reader(io.RawIOBase):
        def write(self, data: object) -> int:
            if not refused:
                for info in origin.list():
                    with pytest.raises(InUse):
                        origin.evict(info.digest)
                    refused.append(info.digest)
            return memoryview(data).nbytes  # type: ignore[arg-type]

    carried_out(origin, Reader())  # type: ignore[arg-type]

    assert len(refused) == 2
    assert origin.leases() == []


def test_more_models_than_files_may_be_open_are_held_all_the_same(origin: LocalStore) -> None:
    for number in range(4):
        fill(origin, {"name": str(number).encode()}, uri=f"s3://models/{number}")
    manifests = [info.digest for info in origin.list()]
    now_s = [0.0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holding, "PROCESS_HOLDS", 2)
        with held_all(origin, manifests, "export", clock=lambda: now_s[0]) as (held, renew):
            assert list(held) == manifests
            kinds = sorted(str(lease.kind) for lease in origin.leases())
            assert kinds == ["lease"] * 4 + ["process"] * 2
            before = {lease.id: lease.expires_at_s for lease in origin.leases()}
            renew()
            assert {lease.id: lease.expires_at_s for lease in origin.leases()} == before
            now_s[0] = holding.LEASE_S / 2
            renew()
            after = {lease.id: lease.expires_at_s for lease in origin.leases()}
            assert sum(after[lease_id] != expires_at_s for lease_id, expires_at_s in before.items()) == 4

    assert origin.leases() == []


# -- through a pipe ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_name", [False, True])
def test_one_store_to_another_through_a_pipe(origin: LocalStore, target: LocalStore, by_name: bool) -> None:
    reading, writing = os.pipe()
    reports: list[ImportReport] = []

    def take() -> None:
        with io.FileIO(reading, "rb") as stream:
            reports.append(carried_in(target, stream))

    thread = threading.Thread(target=take)
    thread.start()
    with io.FileIO(writing, "wb") as stream:
        carried_out(origin, Path(f"/dev/fd/{writing}") if by_name else stream)
    thread.join()

    assert len(reports[0].snapshots) == 2
    assert audit(target.root, Moment.SETTLED) == []


@pytest.fixture
def idle_pipe() -> Iterator[tuple[io.FileIO, io.FileIO]]:
    """Two ends that nobody else uses."""
    reading, writing = os.pipe()
    with io.FileIO(reading, "rb") as reader, io.FileIO(writing, "wb") as writer:
        yield reader, writer


def test_an_export_that_nobody_reads_can_be_cancelled(origin: LocalStore, idle_pipe: tuple[io.FileIO, io.FileIO]) -> None:
    with cancelled_soon() as cancel, pytest.raises(Cancelled):
        carried_out(origin, idle_pipe[1], cancel=cancel)


def test_an_import_that_nobody_writes_can_be_cancelled(target: LocalStore, idle_pipe: tuple[io.FileIO, io.FileIO]) -> None:
    with cancelled_soon() as cancel, pytest.raises(Cancelled):
        carried_in(target, idle_pipe[0], cancel=cancel)


@contextmanager
def cancelled_soon() -> Iterator[Cancellation]:
    cancel = Cancellation()
    timer = threading.Timer(0.1, cancel.cancel)
    timer.start()
    yield cancel
    timer.join()
