"""Archives that real tools packed, from real servers, through `ModelCache` to files; and the second time for nothing."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from modelcache import Config, ModelCache, Progress, Refresh
from modelcache.errors import BadArchive, DigestMismatch, NoSpace, NotFound, UnsafePath
from modelcache.fetch.progress import Phase
from modelcache.sources.s3 import S3Options
from modelcache.testing.archives import Written, contents, tar_of, write_tree, zip_of
from modelcache.testing.audit import Moment, audit
from modelcache.testing.servers import Nginx, SeaweedFS
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import KIB, MIB

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "empty.txt": b"",
    "tokenizer/vocabulary é.json": Random(1).randbytes(3000),
    f"long/{'n' * 120}/{'m' * 120}.txt": b"a name that the old header has no room for",
    "weights.safetensors": Random(2).randbytes(5 * MIB) + bytes(MIB),
}
TOOLS = {
    "gnu.tar": "tar --format=gnu -cf {out} .",
    "posix.tar.gz": "tar --format=posix -czf {out} .",
    "members.tgz": "tar -czf {out} config.json empty.txt tokenizer long weights.safetensors",
    "info.zip": "zip -qr {out} .",
    "stored.ZIP": "zip -qr0 {out} .",
    "python.zip": f"{sys.executable} -m zipfile -c {{out}} config.json empty.txt tokenizer long weights.safetensors",
}


def pack(directory: Path, name: str) -> bytes:
    """FILES, packed by the tool of this name."""
    tree, out = directory / "tree", directory / name
    if not tree.exists():
        write_tree(tree, FILES)
    subprocess.run(TOOLS[name].format(out=out), shell=True, cwd=tree, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    return out.read_bytes()


@pytest.fixture
def cache(seaweedfs: SeaweedFS, tmp_path: Path) -> Iterator[ModelCache]:
    key = seaweedfs.reader
    s3 = S3Options(endpoint=seaweedfs.endpoint, access_key=key.access_key, secret_key=key.secret_key)
    with ModelCache(config=Config.load(environ={}, root=tmp_path / "store", s3=s3, limits=NO_LIMITS)) as cache:
        yield cache


class Web:
    """A directory of the web server, of this test alone."""

    def __init__(self, nginx: Nginx) -> None:
        name = secrets.token_hex(6)
        self.nginx = nginx
        self.directory = nginx.directory / name
        self.directory.mkdir()
        self._base = f"{nginx.endpoint}/{name}"
        self._versions = 0

    def put(self, name: str, data: bytes) -> str:
        """Its URL. Each version has a second of its own: nginx makes ETags of them."""
        place = self.directory / name
        place.write_bytes(data)
        self._versions += 1
        os.utime(place, (1_600_000_000 + self._versions,) * 2)
        return f"{self._base}/{name}"

    def fetched(self) -> list[str]:
        """Ranges asked for since the last call, but for looks at one byte."""
        return [request.range for request in self.nginx.requests() if request.range != "bytes=0-0"]


@pytest.fixture
def web(nginx: Nginx) -> Web:
    return Web(nginx)


@pytest.mark.parametrize("name", TOOLS)
def test_what_a_tool_packed_is_unpacked_once(web: Web, cache: ModelCache, tmp_path: Path, name: str) -> None:
    data = pack(tmp_path, name)
    url = web.put(name, data)
    seen: list[Progress] = []
    snapshot = cache.ensure(url, progress=seen.append)
    assert contents(snapshot.path) == FILES
    total = sum(map(len, FILES.values()))
    assert (seen[-1].phase, seen[-1].bytes_total, seen[-1].bytes_done, seen[-1].bytes_fetched) == (Phase.DONE, total, total, len(data))
    assert cache.usage().ingest_bytes == 0
    assert sum(path.stat().st_size for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file()) == total  # and no archive
    assert len(web.fetched()) >= 1
    assert cache.ensure(url, refresh=Refresh.ALWAYS, progress=seen.append) == snapshot
    assert (seen[-1].hit, seen[-1].bytes_fetched, web.fetched()) == (True, 0, [])
    assert audit(tmp_path / "store", Moment.SETTLED) == []


def test_from_a_bucket_by_its_key_and_as_the_only_object_of_a_prefix(seaweedfs: SeaweedFS, bucket: str, cache: ModelCache) -> None:
    data = tar_of([Written("a/config.json", b"{}"), Written("w.bin", b"w" * 100)])
    seaweedfs.put(bucket, "m/model.tar.gz", data)  # no gzip: the name may be wrong about it
    expected = {"a/config.json": b"{}", "w.bin": b"w" * 100}
    assert contents(cache.ensure(f"s3://{bucket}/m/model.tar.gz").path) == expected
    assert contents(cache.ensure(f"s3://{bucket}/m").path) == expected
    assert contents(cache.ensure(f"s3://{bucket}/m/model.tar.gz#include=a/*").path) == {"a/config.json": b"{}"}
    assert contents(cache.ensure(f"s3://{bucket}/m/model.tar.gz#unpack=false").path) == {"model.tar.gz": data}
    seaweedfs.put(bucket, "m/readme.md", b"two files are no archive")
    assert contents(cache.ensure(f"s3://{bucket}/m", refresh=Refresh.ALWAYS).path) == {
        "model.tar.gz": data,
        "readme.md": b"two files are no archive",
    }
    assert contents(cache.ensure(f"s3://{bucket}/m#include=*.gz").path) == expected
    with pytest.raises(NotFound):
        cache.ensure(f"s3://{bucket}/m/model.tar.gz#include=*.onnx")
    with pytest.raises(NotFound) as caught:
        cache.ensure(f"s3://{bucket}/m/nothing.tar.gz")
    assert str(caught.value).endswith(f": s3://{bucket}/m/nothing.tar.gz")


def test_the_digest_of_a_uri_is_the_archives(web: Web, cache: ModelCache) -> None:
    data = zip_of([Written("f", b"content")])
    url = web.put("m.zip", data)
    assert contents(cache.ensure(f"{url}#sha256={hashlib.sha256(data).hexdigest()}").path) == {"f": b"content"}
    with pytest.raises(DigestMismatch) as caught:
        cache.ensure(f"{url}#sha256={'0' * 64}")
    assert caught.value.expected == f"sha256:{'0' * 64}"
    assert (caught.value.address or "").startswith(f"{url}#sha256=")
    assert "unpack" not in str(caught.value)  # nobody asked for that
    assert cache.usage().ingest_bytes == 0


def test_a_new_version_brings_what_is_new(web: Web, cache: ModelCache) -> None:
    same = Random(3).randbytes(300 * KIB)
    url = web.put("m.tar", tar_of([Written("same", same), Written("f", b"old")]))
    before = cache.ensure(url)
    web.put("m.tar", tar_of([Written("f", b"new"), Written("same", same)]))
    after = cache.ensure(url, refresh=Refresh.ALWAYS)
    assert contents(before.path) == {"same": same, "f": b"old"}
    assert contents(after.path) == {"same": same, "f": b"new"}
    assert (before.path / "same").stat().st_ino == (after.path / "same").stat().st_ino
    web.put("m.tar", tar_of([Written("f", b"new"), Written("same", same)]))  # another time, the same bytes
    seen: list[Progress] = []
    assert cache.ensure(url, refresh=Refresh.ALWAYS, progress=seen.append) == after
    assert (seen[-1].hit, seen[-1].bytes_fetched > 0) == (False, True)


def test_an_evicted_one_is_brought_again(web: Web, cache: ModelCache) -> None:
    url = web.put("m.tgz", tar_of([Written("f", b"content")]))
    cache.ensure(url)
    cache.evict(url)
    assert contents(cache.ensure(url).path) == {"f": b"content"}


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("m.tar", tar_of([Written("f", b"x" * 5000)])[:3000], BadArchive),
        ("m.tar", b"", BadArchive),
        ("m.zip", zip_of([Written("f", b"x" * 5000)])[:-30], BadArchive),
        ("m.tar", tar_of([Written("../../escape", b"x")]), UnsafePath),
        ("m.zip", zip_of([Written("/etc/passwd", b"x")]), UnsafePath),
    ],
    ids=["cut tar", "empty", "cut zip", "upward", "absolute"],
)
def test_what_is_refused_leaves_nothing(
    web: Web, cache: ModelCache, tmp_path: Path, name: str, data: bytes, kind: type[BadArchive | UnsafePath]
) -> None:
    url = web.put(name, data)
    with pytest.raises(kind) as caught:
        cache.ensure(url)
    assert caught.value.address == url
    assert cache.list() == []
    if kind is BadArchive:
        assert (cache.usage().ingest_bytes, cache.usage().blobs_bytes) == (0, 0)
        assert audit(tmp_path / "store", Moment.SETTLED) == []


def test_a_damaged_member_is_told_and_its_archive_fetched_again(web: Web, cache: ModelCache) -> None:
    data = bytearray(zip_of([Written("f", b"x" * 5000)], method=0))
    data[100] ^= 1
    with pytest.raises(DigestMismatch, match="crc32"):
        cache.ensure(web.put("m.zip", bytes(data)))
    assert cache.usage().ingest_bytes == 0
    assert contents(cache.ensure(web.put("m.zip", zip_of([Written("f", b"x" * 5000)]))).path) == {"f": b"x" * 5000}


def test_room_is_booked_for_what_is_in_it_before_it_is_unpacked(web: Web, tmp_path: Path) -> None:
    limits = replace(NO_LIMITS, max_bytes=4 * MIB)
    config = Config.load(environ={}, root=tmp_path / "store", limits=limits)
    with ModelCache(config=config) as cache:
        with pytest.raises(NoSpace):
            cache.ensure(web.put("m.zip", zip_of([Written("zeros", bytes(8 * MIB))])))
        assert cache.usage().ingest_bytes == 0
        assert contents(cache.ensure(web.put("n.zip", zip_of([Written("zeros", bytes(2 * MIB))]))).path) == {"zeros": bytes(2 * MIB)}
