"""How many files a store keeps open, and what it says when it may open no more."""

from __future__ import annotations

import errno
import gc
import os
import resource
from pathlib import Path

import pytest

from modelcache.chunks import CHUNK_BYTES
from modelcache.errors import StoreFault
from modelcache.store import durable
from modelcache.store.descriptors import SHARE, Descriptors
from modelcache.store.incoming import OPEN_FILES
from modelcache.store.layout import CLAIM_FILES
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import (
    complete_all_written,
    content,
    fill,
    manifest_of,
    ref_of,
    wanted,
    write_chunks,
)
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import MIB

WEIGHTS = "weights/model.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "root", NO_LIMITS)


@pytest.mark.parametrize("end", ["keep", "discard", "publish"])
def test_few_files_are_open_and_none_at_the_end(store: LocalStore, end: str) -> None:
    gc.collect()  # what an earlier test left
    before = len(os.listdir("/proc/self/fd"))
    files = {f"{number:03}": content(CHUNK_BYTES // 1000, number) for number in range(3 * OPEN_FILES)}
    ingest = store.ingest(ref_of(files).key, wanted(files))
    for file in ingest.files:
        write_chunks(file, files[file.path])
        assert len(os.listdir("/proc/self/fd")) <= before + OPEN_FILES + CLAIM_FILES + 8
    if end == "publish":
        complete_all_written(ingest.files, files)
        ingest.publish(manifest_of(files), ref_of(files))
        ingest.files[0].read(0, memoryview(bytearray(10)))
    else:
        getattr(ingest, end)()
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_ingests_keep_no_more_files_open_than_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (SHARE * 8, SHARE * 8))
    (tmp_path / "a").write_bytes(b"a")
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    ingests = []
    for _ in range(4):
        ingests.append(Descriptors(limit=OPEN_FILES))
        for number in range(OPEN_FILES):
            with ingests[-1].using(number, tmp_path / "a", os.O_RDONLY) as fd:
                assert os.pread(fd, 1, 0) == b"a"
        assert len(os.listdir("/proc/self/fd")) - before <= 8
    for each in ingests:
        each.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_too_many_open_files_are_no_fault_of_the_disk(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(durable, "create", refused)
    with pytest.raises(StoreFault, match="no more files may be open") as caught:
        store.ingest(ref_of({"a": b"a"}).key, wanted({"a": b"a"}))
    assert "ulimit -n" in str(caught.value.hint)


def test_what_of_an_interrupted_ingest_cant_be_looked_at_is_never_published(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before, now = {"sub/a": content(2 * MIB)}, {"b": b"b"}
    first = store.ingest(ref_of(before).key, wanted(before))
    write_chunks(first.files[0], before["sub/a"])
    first.keep()
    scandir = os.scandir

    def lacking(path: str) -> object:
        if str(path).endswith("/sub"):
            raise OSError(errno.EMFILE, "Too many open files")
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lacking)
        with pytest.raises(StoreFault, match="no more files may be open"):
            store.ingest(ref_of(now).key, wanted(now))
    snapshot = fill(store, now)
    assert [path.name for path in snapshot.path.iterdir()] == ["b"]


def test_a_file_in_use_is_closed_by_its_last_user(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    opened = Descriptors(limit=1)
    with opened.using(0, tmp_path / "a", os.O_RDONLY) as first:
        with opened.using(0, tmp_path / "a", os.O_RDONLY) as second:
            assert first == second
            opened.forget(0)
            assert os.read(first, 1) == b"a"
        assert os.fstat(first).st_size == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first)
    opened.close()
