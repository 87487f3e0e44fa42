"""A disk that runs full, fails, folds names, or can't do what the store would like."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache.abc.ingest import IngestFile, Route
from modelcache.abc.store import Limits
from modelcache.errors import ModelCacheError, NoSpace, StoreFault, StoreReadOnly, UnsafePath
from modelcache.patience import Cancellation
from modelcache.store import durable, incoming
from modelcache.store.incoming import DIRECT_BYTES
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import (
    complete_all,
    complete_all_written,
    content,
    digest_of,
    fill,
    manifest_of,
    ref_of,
    table_of,
    wanted,
    write_chunks,
)
from modelcache.testing.store_fixtures import MODEL, NO_LIMITS, model
from modelcache.units import MIB

WEIGHTS = "weights/model.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "root", NO_LIMITS)


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def files_below(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and not path.name.startswith(("lock", "format"))]


# -- room -------------------------------------------------------------------------------------------------------------


def test_a_full_disk_at_booking_gives_everything_back(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    book, calls = durable.fallocate, iter(range(100))

    def second_fails(fd: int, size_bytes: int, mode: int = 0) -> bool:
        if next(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return book(fd, size_bytes, mode)

    monkeypatch.setattr(durable, "fallocate", second_fails)
    with pytest.raises(NoSpace) as caught:
        store.ingest(ref_of(MODEL).key, wanted(MODEL))
    assert caught.value.needed_bytes >= sum(map(len, MODEL.values()))
    assert files_below(store.root) == []


def test_a_file_system_without_inodes_says_so(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(os.statvfs(store.root))
    found[5:8] = [640, 0, 0]  # f_files, f_ffree, f_favail
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(found))
    monkeypatch.setattr(durable, "create", failing(errno.ENOSPC))
    with pytest.raises(NoSpace, match="inodes") as caught:
        store.ingest(ref_of(MODEL).key, wanted(MODEL))
    assert "many files" in str(caught.value.hint)


def test_a_full_disk_keeps_what_an_earlier_ingest_had(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    files = model(1, 2 * MIB)
    first = store.ingest(ref_of(files).key, wanted(files))
    write_chunks(first.files[0], files["model.safetensors"])
    first.keep()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "fallocate", failing(errno.ENOSPC))
        with pytest.raises(NoSpace):
            store.ingest(ref_of(files).key, wanted(files | {"more": b"more"}))
    again = store.ingest(ref_of(files).key, wanted(files))
    assert set(again.files[0].hints()) == {0}
    again.discard()


def test_where_blocks_cant_be_booked_a_number_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is promised counts, written or not, until the ingest ends."""
    monkeypatch.setattr(durable, "fallocate", lambda *_: False)
    store = LocalStore(tmp_path / "root", Limits(max_bytes=4 * MIB, high_watermark=1.0, low_watermark=1.0))
    files, other = model(1, 3 * MIB), model(2, 3 * MIB)
    ingest = store.ingest(ref_of(files).key, wanted(files))
    (reserved,) = store.root.glob("ingest/*/reserved")
    assert reserved.read_text("ascii") == f"{3 * MIB}\n"
    assert 3 * MIB <= store.usage().ingest_bytes <= 3 * MIB + 65536
    for step in ("begun", "complete", "kept"):
        if step == "complete":
            complete_all(ingest, files)
        elif step == "kept":
            ingest.keep()
        with pytest.raises(NoSpace):
            store.ingest(ref_of(other, uri="s3://b/other").key, wanted(other | {"yet": content(2 * MIB)}))
        assert store.usage().available_bytes <= MIB
    again = store.ingest(ref_of(files).key, wanted(files))
    snapshot = again.publish(manifest_of(files), ref_of(files))
    store.evict(snapshot.digest)
    fill(store, other)


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EIO, StoreFault), (errno.EROFS, StoreReadOnly)]
)
@pytest.mark.parametrize("route", Route)
def test_a_write_that_fails(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[ModelCacheError], route: Route
) -> None:
    files = model(1)
    ingest = store.ingest(ref_of(files).key, wanted(files))
    with monkeypatch.context() as patch:
        patch.setattr(durable, "write", failing(number))
        with pytest.raises(kind) as caught:
            ingest.files[0].write(0, memoryview(mmap.mmap(-1, 8192)), route)
    assert "OSError" not in str(caught.value)
    complete_all(ingest, files)
    ingest.publish(manifest_of(files), ref_of(files))


def test_an_fsync_that_failed_is_done_again(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    files = model(1)
    ingest = store.ingest(ref_of(files).key, wanted(files))
    file, data = ingest.files[0], files["model.safetensors"]
    write_chunks(file, data)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "syncfs", failing(errno.EIO))
        with pytest.raises(StoreFault):
            ingest.flush([file])
        patch.setattr(durable, "fsync", failing(errno.EIO))
        for _ in range(2):
            with pytest.raises(StoreFault):
                file.complete(digest_of(data), table_of(data))
    assert not store.has_blob(digest_of(data))
    file.complete(digest_of(data), table_of(data))
    ingest.publish(manifest_of(files), ref_of(files))


@pytest.mark.parametrize("route", Route)
@pytest.mark.parametrize("most", [511, 4096, 5000])
def test_short_writes_are_continued(store: LocalStore, monkeypatch: pytest.MonkeyPatch, route: Route, most: int) -> None:
    whole = durable.write

    def short(fd: int, data: bytes | memoryview, offset: int) -> int:
        direct = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        return whole(fd, data[: max(512, most // 512 * 512) if direct else most], offset)

    monkeypatch.setattr(durable, "write", short)
    files = {"file": content(100_000, seed=1)}
    ingest = store.ingest(ref_of(files).key, wanted(files))
    buffer = mmap.mmap(-1, 1 << 17)
    buffer[: len(files["file"])] = files["file"]
    ingest.files[0].write(0, memoryview(buffer)[: len(files["file"])], route)
    ingest.files[0].complete(digest_of(files["file"]), table_of(files["file"]))
    assert (ingest.publish(manifest_of(files), ref_of(files)).path / "file").read_bytes() == files["file"]


def test_small_files_go_through_the_page_cache(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"large": content(DIRECT_BYTES), "small": content(DIRECT_BYTES - 1)}
    ingest = store.ingest(ref_of(files).key, wanted(files))
    whole, direct = durable.write, Counter[str]()

    def watched(fd: int, data: bytes | memoryview, offset: int) -> int:
        direct[Path(f"/proc/self/fd/{fd}").readlink().name] += bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
        return whole(fd, data, offset)

    monkeypatch.setattr(durable, "write", watched)
    for file in ingest.files:
        buffer = mmap.mmap(-1, file.size_bytes)
        buffer[:] = files[file.path]
        file.write(0, memoryview(buffer), Route.DIRECT)
    assert direct == {"large": 1, "small": 0}
    complete_all_written(ingest.files, files)
    ingest.publish(manifest_of(files), ref_of(files))


@pytest.mark.parametrize("refuses", [False, True])
def test_direct_writes(store: LocalStore, monkeypatch: pytest.MonkeyPatch, refuses: bool) -> None:
    """Aligned parts go around the page cache, the rest through it; a file system that can't is not asked twice."""
    whole = durable.write
    direct: list[tuple[int, int]] = []

    def watched(fd: int, data: bytes | memoryview, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            direct.append((offset, len(data)))
            if refuses:
                raise OSError(errno.EINVAL, "Invalid argument")
        return whole(fd, data, offset)

    monkeypatch.setattr(durable, "write", watched)
    monkeypatch.setattr(incoming, "DIRECT_BYTES", 1)
    files = {"file": content(3 * 8192 + 100, seed=1)}
    data = files["file"]
    ingest = store.ingest(ref_of(files).key, wanted(files))
    buffer = mmap.mmap(-1, 65536)
    buffer[: len(data)] = data
    view = memoryview(buffer)
    file = ingest.files[0]
    file.write(0, view[:8192], Route.DIRECT)
    file.write(8192, view[8192:16484], Route.DIRECT)  # 100 bytes more than aligned.
    file.write(16484, view[16484:20000], Route.DIRECT)  # Neither offset nor address.
    buffer[40100:48292] = data[:8192]
    file.write(0, view[40100:48292], Route.DIRECT)  # The address is not aligned.
    file.write(20000, memoryview(data)[20000:], Route.DIRECT)  # Read-only memory.
    back = bytearray(len(data))
    file.read(0, memoryview(back))
    assert back == data
    assert direct == ([(0, 8192)] if refuses else [(0, 8192), (8192, 8192)])
    file.complete(digest_of(data), table_of(data))
    ingest.publish(manifest_of(files), ref_of(files))


def test_small_files_that_were_flushed_together_are_not_synced_one_by_one(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """But what was written to after the flush is: before its link every file is durable."""
    synced: list[int] = []
    fsync, link = durable.fsync, durable.link

    def watched(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    linked_unsynced: list[Path] = []

    def checked(source: Path, target: Path) -> None:
        if "blobs" in str(target) and os.stat(source).st_ino not in durable_inodes | set(synced):
            linked_unsynced.append(target)
        link(source, target)

    files = {f"{number}": content(5000, number) for number in range(6)}
    ingest = store.ingest(ref_of(files).key, wanted(files))
    for file in ingest.files:
        write_chunks(file, files[file.path])
    inodes = {file.path: os.stat(store.root / "ingest" / ingest.id / "tree" / file.path).st_ino for file in ingest.files}
    monkeypatch.setattr(durable, "fsync", watched)
    monkeypatch.setattr(durable, "link", checked)
    ingest.flush(ingest.files[:4])
    durable_inodes = {inodes[file.path] for file in ingest.files[:3]}
    ingest.files[3].write(0, memoryview(files["3"])[:10], Route.BUFFERED)
    complete_all_written(ingest.files, files)
    assert linked_unsynced == []
    assert set(synced) & set(inodes.values()) == {inodes[path] for path in ("3", "4", "5")}
    ingest.publish(manifest_of(files), ref_of(files))


# -- names and links --------------------------------------------------------------------------------------------------


def test_a_file_system_that_folds_case(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def twin(path: Path | str) -> bool:
        parent = Path(path).parent
        return parent.is_dir() and Path(path).name.lower() in {name.lower() for name in os.listdir(parent)}

    create, mkdir = durable.create, durable.mkdir

    def folding_create(path: Path, mode: int = 0o600) -> int:
        if twin(path):
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        return create(path, mode)

    def folding_mkdir(path: Path, mode: int) -> None:
        if twin(path):
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        mkdir(path, mode)

    fill(store, {"known": b"known"}, uri="s3://b/known")
    monkeypatch.setattr(durable, "create", folding_create)
    monkeypatch.setattr(durable, "mkdir", folding_mkdir)
    monkeypatch.setattr(os.path, "lexists", twin)
    for files in ({"README": b"1", "readme": b"2"}, {"A/x": b"1", "a/y": b"2"}, {"X": b"known", "x": b"known"}):
        with pytest.raises(UnsafePath, match="another name"):
            store.ingest(ref_of(files).key, wanted(files, known=True))
        assert list((store.root / "ingest").iterdir()) == []
    fill(store, {"README": b"1", "A/x": b"1", "A/y": b"2"})


def test_more_links_than_an_inode_can_have(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    link = durable.link

    def limited(source: Path, target: Path) -> None:
        if os.lstat(source).st_nlink >= 4 and not os.path.lexists(target):
            raise OSError(errno.EMLINK, "Too many links")
        link(source, target)

    monkeypatch.setattr(durable, "link", limited)
    shared = content(5000, seed=1)
    snapshots = [fill(store, {"shared": shared, "own": b"%d" % number}, uri=f"s3://b/{number}", known=True) for number in range(8)]
    assert all((snapshot.path / "shared").read_bytes() == shared for snapshot in snapshots)
    blobs = sorted(path.name for path in (store.root / "blobs").rglob(f"{digest_of(shared).hex}*"))
    assert blobs == [digest_of(shared).hex, f"{digest_of(shared).hex}.1", f"{digest_of(shared).hex}.2"]
    assert store.verify(None, Cancellation()).damages == ()
    assert store.usage().evictable_bytes == store.usage().blobs_bytes
    for snapshot in snapshots[:7]:
        assert store.evict(snapshot.digest).freed_bytes == 4096
    assert store.evict(snapshots[7].digest).freed_bytes >= 2 * 4096
    assert store.usage().blobs_bytes == 0


def test_a_blob_of_another_size_is_no_blob(store: LocalStore) -> None:
    """A failing disk cut it: it is not linked to, and the next fetch puts a whole one in its place."""
    fill(store, MODEL, uri="s3://b/1")
    digest = digest_of(MODEL[WEIGHTS])
    (blob,) = (store.root / "blobs").rglob(digest.hex)
    blob.chmod(0o600)
    os.truncate(blob, 100)
    ref = ref_of(MODEL | {"more": b"m"}, uri="s3://b/2")
    ingest = store.ingest(ref.key, wanted(MODEL | {"more": b"m"}, known=True))
    assert [file.path for file in ingest.files if file.sha256 is None] == [WEIGHTS, "more"]
    complete_all(ingest, MODEL | {"more": b"m"})
    snapshot = ingest.publish(manifest_of(MODEL | {"more": b"m"}), ref)
    assert (snapshot.path / WEIGHTS).read_bytes() == MODEL[WEIGHTS]
    assert [path.name for path in (store.root / "quarantine").iterdir()] == [f"{digest.hex}.0"]


def test_a_published_inode_is_never_written_to(store: LocalStore) -> None:
    """Also when the journal that said that it was published is lost."""
    files = {"file": content(5000, seed=1)}
    ingest = store.ingest(ref_of(files).key, wanted(files))
    complete_all(ingest, files)
    ingest.keep()
    (journal,) = (store.root / "ingest").rglob("journal")
    os.truncate(journal, 0)
    again = store.ingest(ref_of(files).key, wanted(files))
    assert again.files[0].sha256 is None
    again.files[0].write(0, memoryview(b"other bytes"), Route.BUFFERED)
    (blob,) = (store.root / "blobs").rglob(digest_of(files["file"]).hex)
    assert blob.read_bytes() == files["file"]
    again.discard()


def test_without_a_version_nothing_is_journalled(store: LocalStore) -> None:
    files = model(1)
    ingest = store.ingest(ref_of(files).key, [IngestFile("model.safetensors", MIB, "", None)])
    write_chunks(ingest.files[0], files["model.safetensors"])
    (journal,) = (store.root / "ingest").rglob("journal")
    assert journal.stat().st_size == 0
    ingest.discard()
