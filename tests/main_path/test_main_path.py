"""From a real, authenticated S3 server and a real web server through `ModelCache` to verified files, and the second time for nothing."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from modelcache import Cancellation, Config, ModelCache, ModelCacheError, Progress, Refresh
from modelcache.abc.ingest import Route
from modelcache.chunks import CHUNK_BYTES
from modelcache.errors import AccessDenied, Cancelled, DigestMismatch, InvalidUri, NotCached, NotFound
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.fetch import Fetch
from modelcache.fetch.progress import Phase
from modelcache.fetch.request import FetchRequest
from modelcache.sources.s3 import S3Options
from modelcache.testing.servers import Nginx, SeaweedFS
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import MIB


def safetensors(seed: int, size_bytes: int) -> bytes:
    """A valid safetensors file of one tensor of random bytes (safetensors README, Format)."""
    header = json.dumps({"weight": {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}).encode()
    return struct.pack("<Q", len(header)) + header + Random(seed).randbytes(size_bytes)


def model(seed: int) -> dict[str, bytes]:
    return {
        "config.json": b'{"model_type": "llama"}',
        "empty.txt": b"",
        "tokenizer/vocabulary é.json": Random(seed).randbytes(3000),
        "model-00001-of-00002.safetensors": safetensors(seed, 11 * MIB + 13),
        "model-00002-of-00002.safetensors": safetensors(seed + 1, 5 * MIB),
    }


def put(server: SeaweedFS, bucket: str, prefix: str, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        server.put(bucket, f"{prefix}/{path}", data)


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def size_bytes(files: dict[str, bytes]) -> int:
    return sum(map(len, files.values()))


class Seen(list[Progress]):
    """Progress, collected."""

    @property
    def last(self) -> Progress:
        return self[-1]


@pytest.fixture
def config(seaweedfs: SeaweedFS, tmp_path: Path) -> Config:
    key = seaweedfs.admin
    return Config.load(
        environ={},
        root=tmp_path / "store",
        limits=NO_LIMITS,
        s3=S3Options(endpoint=seaweedfs.endpoint, access_key=key.access_key, secret_key=key.secret_key),
    )


@pytest.fixture
def cache(config: Config) -> Iterator[ModelCache]:
    with ModelCache(config=config) as cache:
        yield cache


@pytest.mark.parametrize("route", list(Route))
def test_first_pull_brings_every_byte_and_second_none(seaweedfs: SeaweedFS, bucket: str, config: Config, route: Route) -> None:
    files = model(1)
    put(seaweedfs, bucket, "llama", files)
    seen = Seen()
    with ModelCache(config=Config.load(environ={}, root=config.root, s3=config.s3, write_route=route, limits=NO_LIMITS)) as cache:
        snapshot = cache.ensure(f"s3://{bucket}/llama", progress=seen.append)
        assert content(snapshot.path) == files
        assert (seen.last.phase, seen.last.hit, seen.last.bytes_fetched) == (Phase.DONE, False, size_bytes(files))
        for refresh in Refresh:
            again = cache.ensure(f"s3://{bucket}/llama/", refresh=refresh, progress=seen.append)
            assert again == snapshot
            assert (seen.last.hit, seen.last.bytes_fetched, seen.last.bytes_done) == (True, 0, size_bytes(files))


def test_the_page_cache_is_for_who_reads_next(cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, routes = FetchEngine.start, []

    def noting(engine: FetchEngine, request: FetchRequest) -> Fetch:
        routes.append(request.route)
        return start(engine, request)

    monkeypatch.setattr(FetchEngine, "start", noting)
    for name in ("kept", "read", "opened"):
        (tmp_path / name).write_bytes(name.encode())
    cache.ensure(f"{tmp_path}/kept")
    cache.ensure(f"{tmp_path}/read", reads_next=True)
    with cache.open(f"{tmp_path}/opened"):
        assert routes == [Route.DIRECT, Route.BUFFERED, Route.BUFFERED]


def test_the_same_bytes_under_another_uri_are_stored_once(seaweedfs: SeaweedFS, bucket: str, cache: ModelCache) -> None:
    files = model(2)
    put(seaweedfs, bucket, "one", files)
    put(seaweedfs, bucket, "two", files)
    first = cache.ensure(f"s3://{bucket}/one")
    blobs_bytes = cache.usage().blobs_bytes
    assert cache.ensure(f"s3://{bucket}/two") == first
    assert cache.usage().blobs_bytes == blobs_bytes
    info = cache.find(first.digest.hex[:12])
    assert {ref.key.uri for ref in info.refs} == {f"s3://{bucket}/one", f"s3://{bucket}/two"}
    assert cache.evict(f"s3://{bucket}/one").freed_bytes == 0
    assert content(cache.find(f"s3://{bucket}/two").path) == files


def test_a_new_version_fetches_only_what_changed_and_lands_beside_the_old(seaweedfs: SeaweedFS, bucket: str, cache: ModelCache) -> None:
    old = model(3)
    put(seaweedfs, bucket, "m", old)
    before = cache.ensure(f"s3://{bucket}/m")
    changed = "model-00002-of-00002.safetensors"
    new = old | {changed: safetensors(99, 5 * MIB)}
    seaweedfs.put(bucket, f"m/{changed}", new[changed])
    assert cache.ensure(f"s3://{bucket}/m") == before  # not older than `refresh_s`
    seen = Seen()
    after = cache.ensure(f"s3://{bucket}/m", refresh=Refresh.ALWAYS, progress=seen.append)
    assert content(after.path) == new
    assert content(before.path) == old
    assert seen.last.bytes_fetched == len(new[changed])


def test_patterns_and_an_expected_digest(seaweedfs: SeaweedFS, bucket: str, cache: ModelCache) -> None:
    files = model(4)
    put(seaweedfs, bucket, "m", files)
    chosen = cache.ensure(f"s3://{bucket}/m#include=*.safetensors&include=config.json&exclude=*-00002-*")
    assert content(chosen.path).keys() == {"config.json", "model-00001-of-00002.safetensors"}
    digest = hashlib.sha256(files["config.json"]).hexdigest()
    single = cache.ensure(f"s3://{bucket}/m/config.json#sha256={digest}")
    assert content(single.path) == {"config.json": files["config.json"]}
    with pytest.raises(DigestMismatch) as caught:
        cache.ensure(f"s3://{bucket}/m/config.json#sha256={'0' * 64}")
    assert (caught.value.expected, caught.value.got) == (f"sha256:{'0' * 64}", f"sha256:{digest}")
    with pytest.raises(InvalidUri):
        cache.ensure(f"s3://{bucket}/m#sha256={digest}")


def test_refusals_name_the_thing(seaweedfs: SeaweedFS, bucket: str, cache: ModelCache, tmp_path: Path) -> None:
    put(seaweedfs, bucket, "m", {"config.json": b"{}"})
    with pytest.raises(NotFound, match=f"{bucket}/nothing"):
        cache.ensure(f"s3://{bucket}/nothing")
    with pytest.raises(NotCached):
        cache.ensure(f"s3://{bucket}/m", refresh=Refresh.NEVER)
    nobody = Config.load(environ={}, root=tmp_path / "other", s3=S3Options(endpoint=seaweedfs.endpoint, anonymous=True), limits=NO_LIMITS)
    with ModelCache(config=nobody) as anonymous:
        with pytest.raises(AccessDenied):
            anonymous.ensure(f"s3://{bucket}/m")
        key = seaweedfs.admin
        snapshot = anonymous.ensure(f"s3://{key.access_key}:{key.secret_key}@{bucket}/m")
        assert content(snapshot.path) == {"config.json": b"{}"}
    written = b"".join(path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file())
    assert key.secret_key.encode() not in written


def test_eight_callers_share_one_fetch(seaweedfs: SeaweedFS, bucket: str, cache: ModelCache) -> None:
    files = model(5)
    put(seaweedfs, bucket, "m", files)
    fetched: list[int] = []
    errors: list[BaseException] = []
    start = threading.Barrier(8)

    def ask() -> None:
        seen = Seen()
        start.wait(30)
        try:
            snapshot = cache.ensure(f"s3://{bucket}/m", progress=seen.append)
            assert content(snapshot.path) == files
            fetched.append(seen.last.bytes_fetched)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert set(fetched) <= {size_bytes(files), 0}
    assert len(fetched) == 8


def test_a_cancelled_pull_keeps_its_chunks(seaweedfs: SeaweedFS, bucket: str, config: Config) -> None:
    files = {"model.safetensors": safetensors(6, 40 * MIB)}
    put(seaweedfs, bucket, "m", files)
    cancel = Cancellation()

    def stop_after_a_chunk(progress: Progress) -> None:
        if progress.bytes_fetched > CHUNK_BYTES:  # by one request: the first chunk is kept before a byte of the next one comes
            cancel.cancel()

    one_request = Config.load(environ={"MODELCACHE_REQUESTS": "1"}, root=config.root, limits=NO_LIMITS, s3=config.s3)
    with ModelCache(config=one_request) as cache:
        try:
            cache.ensure(f"s3://{bucket}/m", progress=stop_after_a_chunk, cancel=cancel)
        except Cancelled:
            pass
        else:
            assert cancel.requested  # it was through before the look that would have stopped it
        seen = Seen()
        snapshot = cache.ensure(f"s3://{bucket}/m", progress=seen.append)
    assert content(snapshot.path) == files
    assert seen.last.bytes_reused > 0
    assert seen.last.bytes_reused + seen.last.bytes_fetched == size_bytes(files)


def test_files_of_a_web_server(nginx: Nginx, cache: ModelCache) -> None:
    data = safetensors(7, 9 * MIB)
    (nginx.directory / "main-path").mkdir()
    (nginx.directory / "main-path" / "model.safetensors").write_bytes(data)
    uri = f"{nginx.endpoint}/main-path/model.safetensors"
    assert content(cache.ensure(uri).path) == {"model.safetensors": data}
    assert content(cache.ensure(uri, refresh=Refresh.ALWAYS).path) == {"model.safetensors": data}
    sent = [request.body_bytes for request in nginx.requests() if request.target.startswith("/main-path/")]
    assert sum(sent) - sent.count(1) == len(data)  # a single byte is a listing, or a look at the version behind a range


def test_a_held_snapshot_is_not_evicted(seaweedfs: SeaweedFS, bucket: str, cache: ModelCache) -> None:
    files = model(8)
    put(seaweedfs, bucket, "m", files)
    uri = f"s3://{bucket}/m"
    with cache.open(uri) as snapshot:
        with pytest.raises(ModelCacheError) as caught:
            cache.evict(uri)
        assert caught.value.code == "in-use"
        cache.collect(need_bytes=1 << 60)
        assert content(snapshot.path) == files
    cache.pin(uri)
    cache.collect(need_bytes=1 << 60)
    assert content(cache.find(uri).path) == files
    assert cache.unpin(uri) == 1
    assert cache.evict(uri).freed_bytes >= size_bytes(files)
    assert cache.list() == []
    assert cache.usage().blobs_bytes == 0


def test_verify_takes_damage_out_of_service_and_the_next_ensure_repairs(seaweedfs: SeaweedFS, bucket: str, cache: ModelCache) -> None:
    files = model(9)
    put(seaweedfs, bucket, "m", files)
    uri = f"s3://{bucket}/m"
    target = cache.ensure(uri).path / "model-00001-of-00002.safetensors"
    assert cache.verify().damages == ()
    target.chmod(0o644)
    with target.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"\0rot")
    target.chmod(0o444)
    (damage,) = cache.verify(uri).damages
    assert damage.chunks == (1,)
    seen = Seen()
    repaired = cache.ensure(uri, progress=seen.append)
    assert content(repaired.path) == files
    assert seen.last.bytes_fetched == len(files["model-00001-of-00002.safetensors"])
