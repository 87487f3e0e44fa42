"""Hostile names through every source: refused with nothing left behind, or kept exactly as they are. Nothing leaves the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache import Config, ModelCache
from modelcache.abc.ingest import IngestFile
from modelcache.abc.snapshot import RefKey
from modelcache.ensure import Ensure
from modelcache.errors import InvalidUri, ModelCacheError, NotFound, UnsafePath
from modelcache.fetch.plan import Priority
from modelcache.patience import Cancellation
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.crash_bench import NO_LIMITS
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.fetching import place, running_engine
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.servers import SeaweedFS
from tests.faults.chance import quick_directory

LONG = "é" * 127 + "x"
"""255 bytes, the most that a component may have."""
KEPT = (
    " leading space",
    "trailing space ",
    "trailing dot.",
    "-rf",
    "--root=x",
    ".hidden",
    "...",
    "~",
    "$HOME",
    "a*b?c[d]",
    "quo\"te's",
    "back\\slash",
    "semi;colon",
    "per%cent",
    "%2e%2e",
    "plus+plus",
    "hash#mark",
    "am&p=ersand",
    "CON",
    "lock",
    "plan.json",
    "caf\u00e9",
    "cafe\u0301",
    "Case",
    "case",
    "\U0001f917",
    "\u202egnp.txt",
    "\u200b",
    "dir/deep/er/file",
    LONG,
)
"""Unusual, and allowed: they can neither leave a directory nor be taken for one another on a file system that tells bytes apart."""
REFUSED = (
    "..",
    "../outside",
    "a/../../outside",
    "a/..",
    ".",
    "./a",
    "a/./b",
    "/etc/outside",
    "//outside",
    "a//b",
    "a/",
    "",
    "nul\0byte",
    "new\nline",
    "carriage\rreturn",
    "tab\tstop",
    "escape\x1b[31m",
    "delete\x7f",
    "control\x85",
    "not utf-8 \udcff",
    "x" * 256,
    "x" * 300,
    "\u00e9" * 128,
    "/".join(["x" * 100] * 11),
)
DATA = b"some bytes"
KEY = RefKey("memory://origin/model", "memory://origin:1")


class Yard:
    """A store in a directory that is watched: nothing else may appear there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.root = directory / "yard" / "store"
        self.store = LocalStore(self.root, NO_LIMITS)

    def config(self, **environ: str) -> Config:
        return Config.load({"HOME": str(self._directory / "home"), **environ}, root=self.root, limits=NO_LIMITS)

    def is_clean(self) -> None:
        """Nothing outside of the store, nothing half-done in it."""
        assert [path.name for path in self._directory.iterdir() if path.name != "origin"] == ["yard"]
        assert [path.name for path in (self._directory / "yard").iterdir()] == ["store"]
        assert audit(self.root, Moment.SETTLED) == []

    def is_empty(self) -> None:
        self.is_clean()
        assert self.store.list() == []
        assert not any(path.is_file() for path in (self.root / "blobs").rglob("*"))

    def shows(self, top: Path) -> dict[str, bytes]:
        paths = [os.path.join(parent, name) for parent, _, names in os.walk(top) for name in names]
        return {os.path.relpath(path, top): Path(path).read_bytes() for path in paths}


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


def refuses(yard: Yard, act: Callable[[], object], *kinds: type[ModelCacheError]) -> None:
    with pytest.raises(kinds or UnsafePath) as caught:
        act()
    assert str(caught.value).isprintable(), "a name that would write to the terminal"
    yard.is_empty()


# -- any source ---------------------------------------------------------------------------------------------------------


@contextmanager
def ensuring(yard: Yard) -> Iterator[Callable[[Mapping[str, bytes]], Path]]:
    with running_engine(2) as engine:

        def ensure(files: Mapping[str, bytes]) -> Path:
            source = MemorySource(files)
            return Ensure(yard.store, engine, source, place(), priority=Priority.WAITING, route=None).run(Cancellation()).snapshot.path

        yield ensure


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_name_is_refused_whatever_the_source(yard: Yard, name: str) -> None:
    for names in (["good", name], [f"dir/{name}"]):
        refuses(yard, lambda names=names: yard.store.ingest(KEY, [IngestFile(each, 10, "version", None) for each in names]))  # type: ignore[misc]


def test_a_listing_with_a_hostile_name_ends_before_its_first_byte(yard: Yard) -> None:
    source = MemorySource({"good": DATA, "../outside": DATA})
    with running_engine(1) as engine:
        ensure = Ensure(yard.store, engine, source, place(), priority=Priority.WAITING, route=None)
        refuses(yard, lambda: ensure.run(Cancellation()))
    assert not source.books.opened


def test_all_that_is_unusual_is_kept_as_it_is(yard: Yard) -> None:
    files = {name: f"of {name}".encode() for name in KEPT}
    with ensuring(yard) as ensure:
        assert yard.shows(ensure(files)) == files
    yard.is_clean()


@pytest.mark.parametrize(("name", "other"), [("a", "a/b"), ("a/b", "a/b/c/d"), ("a/b/c", "a")])
def test_a_file_that_is_also_a_directory_is_refused(yard: Yard, name: str, other: str) -> None:
    with ensuring(yard) as ensure:
        refuses(yard, lambda: ensure({name: DATA, other: DATA}))


PARTS = ("..", ".", "", "a", "b", "A", "\0", "\n", " ", "e\u0301", "\u00e9", "x" * 128, "y" * 250)
parts = st.sampled_from(PARTS) | st.text(st.characters(codec="utf-8"), max_size=6)
hostile = st.lists(parts, min_size=1, max_size=4).map("".join) | st.lists(parts, min_size=1, max_size=5).map("/".join)


@given(names=st.sets(hostile, min_size=1, max_size=4))
def test_any_names_are_kept_exactly_or_refused(names: set[str]) -> None:
    with quick_directory() as directory:
        yard = Yard(directory)
        files = {name: name.encode() for name in names}
        with ensuring(yard) as ensure:
            try:
                shown = yard.shows(ensure(files))
            except UnsafePath:
                yard.is_empty()
            else:
                assert shown == files
                yard.is_clean()


# -- file:// ------------------------------------------------------------------------------------------------------------


def on_disk(top: Path, name: str) -> None:
    path = os.path.join(os.fsencode(top), name.encode("utf-8", "surrogateescape"))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(DATA)


@pytest.mark.parametrize("name", [name for name in REFUSED if any(char in name for char in "\n\r\t\x1b\x7f\x85\udcff")])
def test_a_directory_with_a_hostile_name_is_refused(yard: Yard, tmp_path: Path, name: str) -> None:
    on_disk(tmp_path / "origin", name)
    with ModelCache(config=yard.config()) as cache:
        refuses(yard, lambda: cache.ensure(f"file://{tmp_path}/origin"))
        refuses(yard, lambda: cache.ensure(f"file://{tmp_path}/origin/{name}"), UnsafePath, InvalidUri)


def test_a_directory_with_unusual_names_is_kept_as_it_is(yard: Yard, tmp_path: Path) -> None:
    for name in KEPT:
        on_disk(tmp_path / "origin", name)
    with ModelCache(config=yard.config()) as cache:
        assert yard.shows(cache.ensure(f"file://{tmp_path}/origin").path) == dict.fromkeys(KEPT, DATA)
        for name in KEPT:
            single = cache.ensure(f"file://{tmp_path}/origin/{name}#").path
            assert yard.shows(single) == {name.rpartition("/")[2]: DATA}
    yard.is_clean()


def test_links_out_of_a_directory_bring_no_name_of_theirs(yard: Yard, tmp_path: Path) -> None:
    on_disk(tmp_path / "origin" / "elsewhere", "secret")
    (tmp_path / "origin" / "model").mkdir()
    (tmp_path / "origin" / "model" / "weights").symlink_to("../elsewhere/secret")
    (tmp_path / "origin" / "model" / "up").symlink_to("..")
    with ModelCache(config=yard.config()) as cache:
        refuses(yard, lambda: cache.ensure(f"file://{tmp_path}/origin/model"))
        found = cache.ensure(f"file://{tmp_path}/origin/model#exclude=up/*").path
        assert yard.shows(found) == {"weights": DATA}
        assert not (found / "weights").is_symlink()


# -- http:// ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in REFUSED if len(name) < 1000])
def test_a_url_with_a_hostile_name_is_refused(yard: Yard, name: str) -> None:
    path = f"/m/{quote(name, safe='', errors='surrogateescape')}"
    with FaultServer() as server, ModelCache(config=yard.config()) as cache:
        server.put(path, DATA)
        refuses(yard, lambda: cache.ensure(f"{server.endpoint}{path}"), UnsafePath, InvalidUri, NotFound)


def test_a_url_with_an_unusual_name_is_kept_as_it_is(yard: Yard) -> None:
    with FaultServer() as server, ModelCache(config=yard.config()) as cache:
        for name in KEPT:
            server.put(f"/m/{quote(name)}", DATA)
            assert yard.shows(cache.ensure(f"{server.endpoint}/m/{quote(name)}").path) == {name.rpartition("/")[2]: DATA}
    yard.is_clean()


# -- s3:// --------------------------------------------------------------------------------------------------------------


def listing(*keys: str) -> bytes:
    rows = "".join(f"<Contents><Key>{quote(key, safe='')}</Key><Size>{len(DATA)}</Size></Contents>" for key in keys)
    return f"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode()


@pytest.mark.parametrize("name", [name for name in REFUSED if name and "\udcff" not in name])
def test_a_bucket_with_a_hostile_name_is_refused(yard: Yard, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    with FaultServer() as server:
        environ = {"MODELCACHE_S3_ENDPOINT": server.endpoint, "AWS_REGION": "us-east-1"}
        with ModelCache(config=yard.config(**environ)) as cache:
            server.put("/bucket", listing("m/good", f"m/{name}"))
            refuses(yard, lambda: cache.ensure("s3://bucket/m"))
            server.put("/bucket", listing("m/a", "m/a/b"))
            refuses(yard, lambda: cache.ensure("s3://bucket/m"))


def test_a_bucket_with_unusual_names_is_kept_as_it_is(
    yard: Yard, seaweedfs: SeaweedFS, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.reader.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.reader.secret_key)
    names = [name for name in KEPT if "\\" not in name]  # The server makes a slash of it.
    for name in names:
        seaweedfs.put(bucket, f"m/{name}", name.encode())
    environ = {"MODELCACHE_S3_ENDPOINT": seaweedfs.endpoint, "AWS_REGION": "us-east-1"}
    with ModelCache(config=yard.config(**environ)) as cache:
        assert yard.shows(cache.ensure(f"s3://{bucket}/m").path) == {name: name.encode() for name in names}
    yard.is_clean()
