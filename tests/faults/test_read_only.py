"""A store that can't be written: what is here is found, listed and verified; all else is refused at once, as read-only."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelcache.cache import ModelCache, Refresh
from modelcache.config import Config
from modelcache.errors import StoreOwner, StoreReadOnly
from modelcache.testing.small_filesystem import Kind
from modelcache.testing.store_filling import content
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import MIB
from tests.conftest import SmallDisk
from tests.faults.chance import quick_directory

FILES = {"model.safetensors": content(5 * MIB, seed=1), "config.json": b"{}", "empty": b""}
NOBODY = 65534
DEADLINE_S = 60


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A model on another file system."""
    top = tmp_path / "origin"
    top.mkdir()
    for name, data in FILES.items():
        (top / name).write_bytes(data)
    return top


def cache_at(root: Path) -> ModelCache:
    return ModelCache(root, config=Config.load({"HOME": str(root)}, root=root, limits=NO_LIMITS))


@contextmanager
def mounted_read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=DEADLINE_S)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True, timeout=DEADLINE_S)


def refused(cache: ModelCache, origin: Path) -> dict[str, Callable[[], object]]:
    """Everything that has to write."""
    uri = f"file://{origin}"
    [info] = cache.list()
    store = cache._store
    return {
        "fetch": lambda: cache.ensure(f"{uri}/model.safetensors"),
        "open": lambda: cache.open(uri).__enter__(),
        "pin": lambda: cache.pin(uri),
        "lease": lambda: store.lease(info.digest, holder="a pod", ttl_s=60),
        "evict": lambda: cache.evict(uri),
        "collect": lambda: cache.collect(need_bytes=cache.usage().available_bytes + 1),
        "collect nothing": lambda: cache.collect(),
    }


def expect_refusals(cache: ModelCache, origin: Path) -> None:
    for what, write in refused(cache, origin).items():
        with pytest.raises(StoreReadOnly, match="the store can't be written") as caught:
            write()
        assert caught.value.code == "store-read-only", what


def check_all(root: Path, origin: Path) -> None:
    """Look at everything through a new cache, and try everything that writes; the store stays as it is."""
    uri = f"file://{origin}"
    with cache_at(root) as cache:
        before = looks(root)
        for refresh in Refresh:
            found = cache.ensure(uri, refresh=refresh)
            assert {path.name: path.read_bytes() for path in found.path.iterdir()} == FILES
        [info] = cache.list()
        assert (cache.find(uri), info.size_bytes, [ref.key.uri for ref in info.refs]) == (info, sum(map(len, FILES.values())), [uri])
        assert {item.path for item in cache.manifest(uri).files} == FILES.keys()
        report = cache.verify()
        assert (report.damages, report.bytes_read) == ((), info.size_bytes)
        assert cache.usage().blobs_bytes >= info.size_bytes
        assert cache.collect(dry_run=True).freed_bytes == 0
        expect_refusals(cache, origin)
        with pytest.raises(StoreReadOnly, match=str(root)):
            cache.repair(progress=lambda done, total: pytest.fail("read before it is refused"))
        assert [(path, now) for (path, now), (_, then) in zip(looks(root), before, strict=True) if now != then] == []


def looks(root: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Everything in the store, with all that stat(2) tells but the time of the last reading."""
    found = [(str(path), path.lstat()) for path in sorted(root.rglob("*"))]
    return [(path, (one.st_mode, one.st_ino, one.st_nlink, one.st_size, one.st_mtime_ns, one.st_blocks)) for path, one in found]


@pytest.mark.root
@pytest.mark.parametrize("kind", [Kind.EXT4, Kind.TMPFS])
def test_a_file_system_that_is_mounted_read_only(small_disk: SmallDisk, origin: Path, kind: Kind) -> None:
    disk = small_disk(size_bytes=32 * MIB, kind=kind)
    with cache_at(disk / "root") as cache:
        cache.ensure(f"file://{origin}")
    with mounted_read_only(disk):
        check_all(disk / "root", origin)
    with cache_at(disk / "root") as cache:
        cache.evict(f"file://{origin}")


@pytest.mark.root
def test_a_file_system_that_becomes_read_only_under_an_open_cache(small_disk: SmallDisk, origin: Path) -> None:
    disk = small_disk(size_bytes=32 * MIB)
    uri = f"file://{origin}"
    with cache_at(disk / "root") as cache:
        snapshot = cache.ensure(uri)
        with mounted_read_only(disk):
            expect_refusals(cache, origin)
            assert {cache.ensure(uri, refresh=refresh) for refresh in Refresh} == {snapshot}
            assert (snapshot.path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
            assert cache.verify().damages == ()
        assert cache.ensure(uri, refresh=Refresh.ALWAYS) == snapshot
        cache.evict(uri)


@pytest.mark.root
def test_no_store_can_be_made_where_nothing_can_be_written(small_disk: SmallDisk) -> None:
    disk = small_disk(size_bytes=32 * MIB)
    with mounted_read_only(disk), pytest.raises(StoreReadOnly):
        cache_at(disk / "root")


# -- a directory without the right to write, of a user who is not root ---------------------------------------------------


def as_nobody(directory: Path) -> None:
    """The body of a child process that gives up being root, if it is."""
    root, origin = directory / "root", directory / "origin"
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    with cache_at(root) as cache:
        cache.ensure(f"file://{origin}")
    directories = [root, *(path for path in root.rglob("*") if path.is_dir())]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in directories}
    for path in reversed(directories):
        path.chmod(modes[path] & ~0o222)
    check_all(root, origin)
    for path in directories:
        path.chmod(modes[path])
    with cache_at(root) as cache:
        cache.ensure(f"file://{origin}", refresh=Refresh.ALWAYS)
        cache.evict(f"file://{origin}")
    print(json.dumps({"uid": os.geteuid(), "left": [path.name for path in (root / "snapshots").iterdir()]}))


def refused_to_nobody(root: Path) -> None:
    """The body of a child process that gives up being root."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    with pytest.raises(StoreOwner) as caught:
        cache_at(root)
    assert (caught.value.expected, caught.value.got) == ("0", str(NOBODY))
    print("refused")


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_store_of_another_user_is_refused_as_that(origin: Path, mode: int) -> None:
    """Its own mode keeps others out before they could read whose it is; somebody may have opened it."""
    with quick_directory() as directory:
        directory.chmod(0o755)
        with cache_at(directory / "root") as cache:
            cache.ensure(f"file://{origin}")
        (directory / "root" / "format").chmod(0o444)
        (directory / "root").chmod(mode)
        program = f"import pathlib, tests.faults.test_read_only as test; test.refused_to_nobody(pathlib.Path({str(directory / 'root')!r}))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr


def test_a_directory_without_the_right_to_write(origin: Path) -> None:
    with quick_directory() as directory:
        shutil.copytree(origin, directory / "origin")
        if os.geteuid() == 0:
            os.chown(directory, NOBODY, NOBODY)
        program = f"import pathlib, tests.faults.test_read_only as test; test.as_nobody(pathlib.Path({str(directory)!r}))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"uid": NOBODY if os.geteuid() == 0 else os.geteuid(), "left": []}
