from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from modelcache.abc.store import Store
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.errors import (
    NoSpace,
    StoreFault,
    StoreFormat,
    StoreLocation,
    StoreOwner,
    StoreReadOnly,
)
from modelcache.patience import Cancellation
from modelcache.store import durable, filesystem
from modelcache.store import root as store_root
from modelcache.store.faults import translated
from modelcache.store.layout import TEMP_PREFIX
from modelcache.store.store import LocalStore
from modelcache.testing.small_filesystem import Kind, small_filesystem
from modelcache.testing.store_filling import fill, ref_of, wanted
from modelcache.testing.store_fixtures import MODEL, NO_LIMITS, model
from modelcache.units import MIB


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"" for path in root.rglob("*")}


def test_opening_again_finds_the_same_store(tmp_path: Path) -> None:
    root = tmp_path / "new" / "and" / "deep"
    first = LocalStore(root, NO_LIMITS)
    before = tree(root)
    second = LocalStore(root, NO_LIMITS, create=False)
    assert (first.store_id, first.root) == (second.store_id, second.root)
    assert tree(root) == before
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert not second.read_only


def test_two_stores_have_two_ids(tmp_path: Path) -> None:
    assert LocalStore(tmp_path / "a", NO_LIMITS).store_id != LocalStore(tmp_path / "b", NO_LIMITS).store_id


def test_what_a_killed_creation_left_is_completed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / f"{TEMP_PREFIX}0123456789abcdef").write_bytes(b"half a form")
    (root / "lost+found").mkdir()
    store = LocalStore(root, NO_LIMITS)
    fill(store, MODEL)
    (root / "lock.turn").unlink()
    (root / "trash").rmdir()
    root.chmod(0o755)
    assert len(LocalStore(root, NO_LIMITS).list()) == 1
    assert (root / "lock.turn").is_file()
    assert (root / "trash").is_dir()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_processes_that_make_one_store_at_once_agree(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from modelcache.store.store import LocalStore;"
        "from modelcache.testing.store_fixtures import NO_LIMITS; print('ready', flush=True); input();"
        "print(LocalStore(Path(sys.argv[1]), NO_LIMITS).store_id)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "root")]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    ids = {child.communicate(timeout=60)[0] for child in children}
    assert ids == {LocalStore(tmp_path / "root", NO_LIMITS).store_id + "\n"}


def test_a_store_that_somebody_makes_between_two_looks_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = store_root._content
    made = []

    def after_another(root: Path) -> set[str]:
        monkeypatch.undo()
        made.append(LocalStore(root, NO_LIMITS).store_id)
        return look(root)

    monkeypatch.setattr(store_root, "_content", after_another)
    assert [LocalStore(tmp_path / "root", NO_LIMITS).store_id] == made


def test_a_missing_store_may_be_an_unmounted_disk(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StoreFormat, match="no store") as caught:
            LocalStore(root, NO_LIMITS, create=False)
        assert "mounted" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["blobs", "snapshots", "lock", "ingest"])
def test_a_store_that_lost_its_format_is_not_made_anew(tmp_path: Path, part: str) -> None:
    (tmp_path / part).mkdir()
    with pytest.raises(StoreFormat, match="`format` file is gone"):
        LocalStore(tmp_path, NO_LIMITS)
    assert [path.name for path in tmp_path.iterdir()] == [part]


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("don't touch")
    with pytest.raises(StoreLocation, match=r"thesis\.tex"):
        LocalStore(tmp_path, NO_LIMITS)
    with pytest.raises(StoreLocation, match="not a directory"):
        LocalStore(tmp_path / "thesis.tex", NO_LIMITS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"modelcache 2\nanything at all", "format 2"),
        (b"modelcache 1\n", "names no owner"),
        (b"modelcache one\n", "can't be read"),
        (b"", "can't be read"),
        (b"\xff\xfe", "can't be read"),
    ],
)
def test_formats_that_are_not_ours(tmp_path: Path, text: bytes, said: str) -> None:
    root = LocalStore(tmp_path / "root", NO_LIMITS).root
    (root / "format").chmod(0o600)
    (root / "format").write_bytes(text)
    with pytest.raises(StoreFormat, match=said) as caught:
        LocalStore(root, NO_LIMITS)
    if b"2" in text:
        assert (caught.value.expected, caught.value.got) == ("1", "2")


def test_another_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = LocalStore(tmp_path / "root", NO_LIMITS).root
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    with pytest.raises(StoreOwner) as caught:
        LocalStore(root, NO_LIMITS)
    assert (caught.value.expected, caught.value.got) == (str(us), str(us + 1))
    (tmp_path / "theirs").mkdir()
    with pytest.raises(StoreOwner):
        LocalStore(tmp_path / "theirs", NO_LIMITS)


def test_places_of_kserve_are_refused_through_links_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "mnt" / "models"
    (models / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to(models / "inside")
    monkeypatch.setattr(filesystem, "REFUSED_PLACES", (models,))
    for root in (models, models / "new" / "deep", tmp_path / "link", tmp_path / "link" / "new"):
        with pytest.raises(StoreLocation, match="KServe"):
            LocalStore(root, NO_LIMITS)
    LocalStore(models.parent / "models2", NO_LIMITS)


def test_the_refused_places_are_kserves() -> None:
    for root in ("/models", "/models/llama", "/mnt/models", "/mnt/models/a/b"):
        with pytest.raises(StoreLocation, match="KServe"):
            filesystem.check_place(Path(root))


@pytest.mark.parametrize("kind", [0x6969, 0xFF534D42, 0x65735546, 0x01021997, 0x0BD00BD0])
def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    monkeypatch.setattr(filesystem, "filesystem_magic", lambda path: kind)
    with pytest.raises(StoreLocation, match="local file system"):
        LocalStore(tmp_path / "root", NO_LIMITS)
    assert list(tmp_path.iterdir()) == []


def test_a_fuse_file_system_is_taken_on_somebodys_word_and_a_network_one_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "filesystem_magic", lambda path: filesystem.FUSE)
    with pytest.raises(StoreLocation) as caught:
        LocalStore(tmp_path / "root", NO_LIMITS)
    assert "MODELCACHE_ALLOW_FUSE" in (caught.value.hint or "")
    with ModelCache(config=Config.load({"HOME": "/nowhere", "MODELCACHE_ALLOW_FUSE": "1"}, root=tmp_path / "root")) as cache:
        assert cache.list() == []
    monkeypatch.setattr(filesystem, "filesystem_magic", lambda path: 0x6969)
    with pytest.raises(StoreLocation) as caught:
        LocalStore(tmp_path / "other", NO_LIMITS, allow_fuse=True)
    assert "MODELCACHE_ALLOW_FUSE" not in (caught.value.hint or "")


def test_a_disk_that_is_not_mounted_does_not_become_a_store(tmp_path: Path) -> None:
    mount_point = tmp_path / "mount"
    mount_point.mkdir()
    config = Config.load({"HOME": "/nowhere", "MODELCACHE_CREATE": "0"}, root=mount_point)
    with pytest.raises(StoreFormat, match="no store here"):
        ModelCache(config=config)
    with pytest.raises(StoreFormat, match="no store here"):
        ModelCache(mount_point, create=False)
    assert list(mount_point.iterdir()) == []
    ModelCache(config=config, create=True).close()
    with ModelCache(config=config) as cache:
        assert cache.list() == []


def test_the_kind_of_a_file_system_is_what_stat_says(tmp_path: Path) -> None:
    said = subprocess.run(["stat", "-f", "-c", "%t", str(tmp_path)], capture_output=True, text=True, check=True, timeout=60).stdout
    assert filesystem.filesystem_magic(tmp_path) == int(said, 16)


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(StoreLocation, match="no hard links"):
        LocalStore(tmp_path / "root", NO_LIMITS)


@pytest.mark.root
def test_a_read_only_file_system_is_read_and_not_written(tmp_path: Path) -> None:
    root = tmp_path / "root"
    snapshot = fill(LocalStore(root, NO_LIMITS), MODEL)
    before = tree(root)
    subprocess.run(["mount", "--bind", str(root), str(root)], check=True, timeout=60)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(root)], check=True, timeout=60)
        store: Store = LocalStore(root, NO_LIMITS)
        _check_read_only(store, LocalStore(root, NO_LIMITS), snapshot.path)
    finally:
        subprocess.run(["umount", str(root)], check=True, timeout=60)
    assert tree(root) == before


def _check_read_only(store: Store, local: LocalStore, path: Path) -> None:
    digest = ref_of(MODEL).manifest
    assert local.read_only
    found = store.snapshot(digest)
    assert found is not None
    assert found.path == path
    assert store.ref(ref_of(MODEL).key) == ref_of(MODEL)
    assert [info.digest for info in store.list()] == [digest]
    assert store.usage().blobs_bytes > 0
    assert store.leases() == []
    assert store.verify(None, Cancellation()).damages == ()
    assert store.evict(digest, dry_run=True).digest == digest
    assert store.collect(dry_run=True).evicted == ()
    assert store.touch(ref_of(MODEL), checked_at_s=1.0).checked_at_s == 1.0  # a hit is one all the same
    assert store.ref(ref_of(MODEL).key) == ref_of(MODEL)
    for act in (
        lambda: store.lease(digest, holder="x", ttl_s=1),
        lambda: store.pin(digest, holder="x"),
        lambda: store.hold(digest, holder="x").__enter__(),
        lambda: store.forget(ref_of(MODEL).key),
        lambda: store.attach(ref_of(MODEL)),
        lambda: store.evict(digest),
        lambda: store.ingest(ref_of(model(1)).key, wanted(model(1))),
    ):
        with pytest.raises(StoreReadOnly):
            act()


def test_errors_of_the_disk_are_ours(tmp_path: Path) -> None:
    numbers = {28: NoSpace, 122: NoSpace, 30: StoreReadOnly, 13: StoreReadOnly, 5: StoreFault, 116: StoreFault, 2: StoreFault}
    for number, kind in numbers.items():
        error = translated(OSError(number, os.strerror(number), "/some/file"), str(tmp_path), needed_bytes=7)
        assert isinstance(error, kind)
        if isinstance(error, NoSpace):
            assert error.needed_bytes == 7
            assert error.available_bytes > 0
        else:
            assert error.address == "/some/file"
            assert ("unmounted" in (error.hint or "")) is (number == 2)  # no fault of the disk's


@pytest.mark.root
def test_a_part_that_is_a_mount_of_its_own_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    LocalStore(root, NO_LIMITS)
    with small_filesystem(tmp_path / "other", size_bytes=MIB, kind=Kind.TMPFS) as other:
        (root / "snapshots").rmdir()
        (root / "snapshots").symlink_to(other)
        with pytest.raises(StoreLocation, match="a mount of its own"):
            LocalStore(root, NO_LIMITS)


def test_a_link_across_mounts_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file system mounted once more below the root: nothing tells it apart but that links fail."""
    store = LocalStore(tmp_path / "root", NO_LIMITS)

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source), None, str(target))

    monkeypatch.setattr(durable, "link", refuse)
    with pytest.raises(StoreLocation, match="across mounts"):
        fill(store, MODEL)
    assert list((tmp_path / "root" / "blobs" / "sha256").glob("*/*")) == []
