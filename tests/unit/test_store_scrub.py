"""What verify finds on a disk that did not keep what it was given."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pytest

from modelcache.abc.snapshot import Snapshot
from modelcache.abc.store import Damage
from modelcache.abc.upkeep import ScrubLimits
from modelcache.chunks import CHUNK_BYTES
from modelcache.errors import Cancelled, StoreFault
from modelcache.patience import Cancellation
from modelcache.store.direct import DiskReader, disk_reader
from modelcache.store.lock import StoreLock
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import complete_all, digest_of, fill, manifest_of, ref_of, table_of, wanted
from modelcache.testing.store_fixtures import MODEL, NO_LIMITS, model
from modelcache.units import MIB

WEIGHTS = "weights/model.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "root", NO_LIMITS)


def verify(store: LocalStore) -> tuple[Damage, ...]:
    return store.verify(None, Cancellation()).damages


def named(store: LocalStore, directory: str, data: bytes) -> Path:
    return next((store.root / directory).rglob(digest_of(data).hex))


# -- trees ------------------------------------------------------------------------------------------------------------


def add(top: Path) -> None:
    (top / "weights").chmod(0o755)
    (top / "weights" / "__pycache__").mkdir()
    (top / "weights" / "__pycache__" / "cache.bin").write_bytes(b"cache")


def remove(top: Path) -> None:
    top.chmod(0o755)
    (top / "empty").unlink()


def replace(top: Path) -> None:
    (top / "weights").chmod(0o755)
    (top / WEIGHTS).unlink()
    (top / WEIGHTS).write_bytes(bytes(len(MODEL[WEIGHTS])))


def point(top: Path) -> None:
    top.chmod(0o755)
    (top / "config.json").unlink()
    (top / "config.json").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("change", "path", "said"),
    [
        (add, "weights/__pycache__/cache.bin", "does not belong"),
        (remove, "empty", "missing"),
        (replace, WEIGHTS, "sha256:"),
        (point, "config.json", "not a file of 23 bytes"),
    ],
)
def test_a_changed_tree_is_withdrawn_and_comes_back_without_a_fetch(
    store: LocalStore, change: Callable[[Path], None], path: str, said: str
) -> None:
    snapshot = fill(store, MODEL)
    change(snapshot.path)
    (damage,) = verify(store)
    assert (damage.path, damage.withdrawn) == (snapshot.path / path, (snapshot.digest,))
    assert said in damage.reason
    assert store.snapshot(snapshot.digest) is None
    assert fill(store, MODEL, known=True) == snapshot
    assert verify(store) == ()
    assert all(store.has_blob(digest_of(data)) for data in MODEL.values())


# -- blobs and tables -------------------------------------------------------------------------------------------------


def test_a_blob_that_lost_its_name_gets_it_back(store: LocalStore) -> None:
    fill(store, MODEL)
    blob = named(store, "blobs", MODEL[WEIGHTS])
    inode = blob.stat().st_ino
    blob.unlink()
    assert not store.has_blob(digest_of(MODEL[WEIGHTS]))
    assert verify(store) == ()
    assert blob.stat().st_ino == inode


@pytest.mark.parametrize("damage", ["missing", "cut", "wrong"])
def test_a_chunk_table_is_written_anew_from_sound_bytes(store: LocalStore, damage: str) -> None:
    snapshot = fill(store, MODEL)
    path = named(store, "chunks", MODEL[WEIGHTS])
    whole = path.read_bytes()
    assert whole == table_of(MODEL[WEIGHTS]).encode()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[:-1] if damage == "cut" else whole[:-1] + b"\0")
    (found,) = verify(store)
    assert (found.path, found.withdrawn, found.chunks) == (path, (), ())
    assert "written anew" in found.reason
    assert path.read_bytes() == whole
    assert verify(store) == ()
    assert store.snapshot(snapshot.digest) is not None


def test_a_damaged_blob_is_kept_aside_as_it_was(store: LocalStore) -> None:
    fill(store, MODEL)
    blob = named(store, "blobs", MODEL[WEIGHTS])
    blob.chmod(0o600)
    os.truncate(blob, CHUNK_BYTES + 5)
    (tree, damage) = sorted(verify(store), key=lambda item: item.digest is not None)
    assert "is not a file of" in tree.reason
    assert damage.chunks == (1, 2)
    (aside,) = (store.root / "quarantine").iterdir()
    assert aside.read_bytes() == MODEL[WEIGHTS][: CHUNK_BYTES + 5]
    assert store.usage().quarantine_bytes >= CHUNK_BYTES
    assert (store.root / "chunks").exists()
    store.collect()
    assert aside.exists()


@pytest.mark.parametrize("size_bytes", [0, 1, 4095, 4096, 4097, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_a_buffer_is_no_larger_than_the_file_takes(tmp_path: Path, size_bytes: int) -> None:
    data = random.Random(size_bytes).randbytes(size_bytes)
    (tmp_path / "file").write_bytes(data)
    with disk_reader(tmp_path / "file", CHUNK_BYTES) as reader:
        assert [bytes(view) for view in reader.chunks()] == [data[at : at + CHUNK_BYTES] for at in range(0, size_bytes, CHUNK_BYTES)]
        assert len(reader._buffer) == min(CHUNK_BYTES, max(4096, (size_bytes + 4095) // 4096 * 4096))


def test_a_disk_that_cant_give_the_bytes_back(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = fill(store, MODEL)
    read = DiskReader._fill

    def failing(self: DiskReader, view: memoryview, offset: int) -> int:
        if offset == CHUNK_BYTES:
            raise OSError(errno.EIO, "Input/output error")
        return read(self, view, offset)

    monkeypatch.setattr(DiskReader, "_fill", failing)
    (damage,) = verify(store)
    assert (damage.digest, damage.withdrawn, damage.chunks) == (digest_of(MODEL[WEIGHTS]), (snapshot.digest,), (1, 2))
    assert "Input/output error" in damage.reason


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("name", ["DiskReader.__init__", "DiskReader._fill", "Path.read_bytes"])
def test_what_this_process_lacks_is_no_damage(store: LocalStore, monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    snapshot = fill(store, MODEL)
    kept = sorted(store.root.rglob("*"))

    def lacking(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        of, _, method = name.partition(".")
        patch.setattr({"DiskReader": DiskReader, "Path": Path}[of], method, lacking)
        for look in (lambda: verify(store), lambda: store.scrub(ScrubLimits(), Cancellation())):
            with pytest.raises(StoreFault, match=r"no more files|no memory"):
                look()
    assert sorted(store.root.rglob("*")) == kept
    assert (store.snapshot(snapshot.digest), verify(store)) == (snapshot, ())


def test_a_held_snapshot_is_withdrawn_by_a_later_verify(store: LocalStore) -> None:
    snapshot = fill(store, MODEL)
    blob = named(store, "blobs", MODEL[WEIGHTS])
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.write(b"damage")
    with store.hold(snapshot.digest, holder="pod"):
        (damage,) = verify(store)
        assert (damage.withdrawn, damage.still_held) == ((), (snapshot.digest,))
        fill(store, model(1) | {"weights": MODEL[WEIGHTS]}, uri="s3://b/other")
        assert store.snapshot(snapshot.digest) == snapshot
    (damage,) = verify(store)
    assert (damage.path, damage.withdrawn) == (snapshot.path / WEIGHTS, (snapshot.digest,))
    assert verify(store) == ()
    assert store.has_blob(digest_of(MODEL[WEIGHTS]))


def test_it_can_be_stopped_in_the_middle(store: LocalStore) -> None:
    snapshot = fill(store, MODEL)
    cancel = Cancellation()
    with pytest.raises(Cancelled):
        store.verify(None, cancel, lambda done, total: cancel.cancel())
    assert store.snapshot(snapshot.digest) == snapshot


# -- the disk itself --------------------------------------------------------------------------------------------------


class SmallDisk(Protocol):
    def __call__(self, *, size_bytes: int) -> Path: ...


@pytest.mark.root
def test_damage_on_the_disk_is_seen_past_a_sound_page_cache(small_disk: SmallDisk) -> None:
    """A block that rotted after the file was read: a buffered read still shows the bytes that were written."""
    mount = small_disk(size_bytes=64 * MIB)
    store = LocalStore(mount / "root", NO_LIMITS)
    snapshot = fill(store, MODEL)
    subprocess.run(["sync", "-f", str(mount)], check=True, timeout=60)
    path = snapshot.path / WEIGHTS
    assert path.read_bytes() == MODEL[WEIGHTS]
    command = [str(shutil.which("filefrag")), "-b512", "-v", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    block = re.search(r"^ +0: +0\.\. +\d+: +(\d+)\.\.", said.stdout, re.MULTILINE)
    assert block is not None, said.stdout
    with (mount.parent / "image").open("r+b") as image:
        image.seek(int(block[1]) * 512 + 100)
        image.write(b"rot")
    assert path.read_bytes() == MODEL[WEIGHTS]
    (damage,) = verify(store)
    assert (damage.digest, damage.chunks, damage.withdrawn) == (digest_of(MODEL[WEIGHTS]), (0,), (snapshot.digest,))
    assert store.ref(ref_of(MODEL).key) is not None


# -- a publish meanwhile --------------------------------------------------------------------------------------------------


def test_a_snapshot_published_right_before_the_quarantine_is_withdrawn_too(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, MODEL)
    both = {"weights": MODEL[WEIGHTS], "new": b"new"}
    ref = ref_of(both, uri="s3://b/2")
    ingest = store.ingest(ref.key, wanted(both, known=True))
    complete_all(ingest, both)
    path = named(store, "blobs", MODEL[WEIGHTS])
    path.chmod(0o600)
    path.write_bytes(bytes(len(MODEL[WEIGHTS])))
    exclusive = StoreLock.exclusive
    published: list[Snapshot] = []

    def after_a_publish(lock: StoreLock) -> AbstractContextManager[None]:
        if not published:
            published.append(ingest.publish(manifest_of(both), ref))
        return exclusive(lock)

    monkeypatch.setattr(StoreLock, "exclusive", after_a_publish)
    [damage] = [item for item in verify(store) if item.digest is not None]
    assert set(damage.withdrawn) == {manifest_of(MODEL).digest, published[0].digest}
    assert store.list() == []
