"""S3 objects of one chunk, for which no HeadObject is asked: what it would tell comes with the bytes, or the listing starts over."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache import ModelCache
from modelcache.abc.source import Listing
from modelcache.chunks import CHUNK_BYTES
from modelcache.config import Config
from modelcache.digest import Algorithm
from modelcache.ensure import REDEFINED_HINT
from modelcache.errors import DigestMismatch, SourceChanged
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.refresh import Refresh
from modelcache.sources.s3 import S3Source
from modelcache.testing.listings import listing_of
from modelcache.testing.s3_sources import options_of, proxied, source_of
from modelcache.testing.servers import Nginx, SeaweedFS
from modelcache.testing.source_contract import read
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.uri import StorageUri

NAMES = [f"part-{number}.json" for number in range(5)]


@pytest.fixture
def model(seaweedfs: SeaweedFS, bucket: str) -> str:
    for name in NAMES:
        seaweedfs.put(bucket, f"m/{name}", name.encode() * 100, checksum="SHA256")
    return f"s3://{bucket}/m"


@pytest.fixture
def cache(tmp_path: Path, seaweedfs: SeaweedFS) -> Iterator[ModelCache]:
    with ModelCache(config=Config(root=tmp_path / "root", limits=NO_LIMITS, s3=options_of(seaweedfs))) as made:
        yield made


def heads(proxy: Nginx) -> list[str]:
    return [request.target.rpartition("/")[2] for request in proxy.requests() if request.method == "HEAD"]


def test_one_small_object_is_asked_about_and_large_ones_are_all(seaweedfs: SeaweedFS, bucket: str, model: str) -> None:
    large = os.urandom(CHUNK_BYTES + 1)
    seaweedfs.put(bucket, "m/large-0", large, checksum="SHA256")
    seaweedfs.put(bucket, "m/large-1", large)
    with proxied(seaweedfs) as proxy, source_of(options_of(seaweedfs, endpoint=proxy.endpoint)) as source:
        files = {file.path: file for file in listing_of(source, model).files}
        asked = heads(proxy)
        assert asked[0] == "m"  # the URI's own key
        assert len(asked[1:]) <= 3  # and the newest
        assert {"large-0", "large-1"} <= set(asked[1:])
        assert [digest.hex for digest in files["large-0"].digests] == [hashlib.sha256(large).hexdigest()]
        assert files["large-1"].digests == ()
        etags = {each["Key"]: each["ETag"] for each in seaweedfs.client().list_objects_v2(Bucket=bucket)["Contents"]}
        assert {path: file.validator for path, file in files.items()} == {key.removeprefix("m/"): etag for key, etag in etags.items()}


def test_where_versions_are_kept_every_object_is_pinned_to_its_own(seaweedfs: SeaweedFS, versioned_bucket: str) -> None:
    for name in NAMES:
        seaweedfs.put(versioned_bucket, f"m/{name}", b"old " + name.encode())
    with source_of(options_of(seaweedfs)) as source:
        files = listing_of(source, f"s3://{versioned_bucket}/m").files
        for name in NAMES:
            seaweedfs.put(versioned_bucket, f"m/{name}", b"new " + name.encode())
        assert [read(source, file) for file in files] == [b"old " + name.encode() for name in NAMES]


def test_an_object_that_is_replaced_after_the_listing_is_a_change(seaweedfs: SeaweedFS, bucket: str, model: str) -> None:
    with proxied(seaweedfs) as proxy, source_of(options_of(seaweedfs, endpoint=proxy.endpoint)) as source:
        files = {file.path: file for file in listing_of(source, model).files}
        seaweedfs.put(bucket, f"m/{NAMES[1]}", NAMES[2].encode() * 100)  # of the same size
        seaweedfs.delete(bucket, f"m/{NAMES[2]}")
        for name, span in ((NAMES[1], None), (NAMES[1], ByteRange(0, 1)), (NAMES[2], None)):
            with pytest.raises(SourceChanged):
                read(source, files[name], span)
        assert read(source, files[NAMES[0]]) == NAMES[0].encode() * 100
        heads(proxy)
        again = [file.path for file in listing_of(source, model).files]
        assert again == [NAMES[0], NAMES[1], NAMES[3], NAMES[4]]
        assert sorted(heads(proxy)[-4:]) == again  # HeadObject alone is believed
        listing_of(source, model)
        assert len(heads(proxy)) == 2  # until a listing agrees with it: the URI's own key, and the newest object


def test_a_model_that_changes_between_its_listing_and_its_bytes_is_never_a_mixture(
    cache: ModelCache, seaweedfs: SeaweedFS, bucket: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = S3Source.list
    listings: list[Listing] = []

    def then_replaced(source: S3Source, uri: StorageUri, cancel: Cancellation) -> Listing:
        listings.append(listed(source, uri, cancel))
        if len(listings) == 1:
            for name in NAMES:
                seaweedfs.put(bucket, f"m/{name}", b"!" * len(name) * 100)
        return listings[-1]

    monkeypatch.setattr(S3Source, "list", then_replaced)
    snapshot = cache.ensure(model)
    assert {path.name: path.read_bytes() for path in snapshot.path.iterdir()} == {name: b"!" * len(name) * 100 for name in NAMES}
    assert len(listings) == 2


def test_what_comes_with_the_bytes_is_compared_and_recorded(cache: ModelCache, seaweedfs: SeaweedFS, bucket: str, model: str) -> None:
    seaweedfs.put(bucket, "m/plain.json", b"{}")
    seaweedfs.put(bucket, "m/crc.json", b"{}{}", checksum="CRC32")
    cache.ensure(model)
    [ref] = cache.refs(model)
    stated = {file.path: [digest.algorithm for digest in file.stated] for file in ref.files}
    assert stated == {name: [Algorithm.SHA256] for name in NAMES} | {"plain.json": [], "crc.json": [Algorithm.CRC32]}


@pytest.mark.parametrize("header", ["x-amz-checksum-sha256", "x-amz-checksum-crc32"])
def test_bytes_that_are_not_what_their_answer_states_are_dropped(tmp_path: Path, seaweedfs: SeaweedFS, bucket: str, header: str) -> None:
    """The store states a checksum of other bytes with the bytes themselves, and nowhere else."""
    for name in ("b", "a"):  # a HeadObject is sent for the newest
        seaweedfs.put(bucket, f"m/{name}", name.encode() * 9)
    other = base64.b64encode(hashlib.sha256(b"others").digest()[: 32 if header.endswith("sha256") else 4]).decode()
    more = f"location ~ /m/b$ {{ proxy_pass {seaweedfs.endpoint}; proxy_set_header Host $http_host; add_header {header} {other}; }}"
    with proxied(seaweedfs, more) as proxy:
        config = Config(root=tmp_path / "root", limits=NO_LIMITS, s3=options_of(seaweedfs, endpoint=proxy.endpoint))
        with ModelCache(config=config) as cache, pytest.raises(DigestMismatch) as caught:
            cache.ensure(f"s3://{bucket}/m")
        gets = [request for request in proxy.requests() if request.method == "GET" and request.target.endswith("/m/b")]
        assert "b" not in heads(proxy)
    assert len(gets) == 2  # once more, over a fresh connection
    assert caught.value.hint != REDEFINED_HINT
    assert not any(path.is_file() and path.stat().st_size == 9 for path in (tmp_path / "root").rglob("*"))


def test_a_listing_that_names_other_etags_than_the_objects_have_costs_a_second_one(
    tmp_path: Path, seaweedfs: SeaweedFS, bucket: str, model: str
) -> None:
    entries = "".join(
        f"<Contents><Key>m/{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;listed-{name}&quot;</ETag>"
        f"<Size>{len(name) * 100}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for name in NAMES
    )
    page = f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
    (tmp_path / "page.xml").write_text(page)
    tmp_path.chmod(0o755)
    more = f'location = /{bucket} {{ default_type application/xml; alias "{tmp_path}/page.xml"; }}'
    with proxied(seaweedfs, more) as proxy:
        config = Config(root=tmp_path / "root", limits=NO_LIMITS, s3=options_of(seaweedfs, endpoint=proxy.endpoint))
        with ModelCache(config=config) as cache:
            snapshot = cache.ensure(model)
            assert [path.read_bytes() for path in sorted(snapshot.path.iterdir())] == [name.encode() * 100 for name in NAMES]
            assert len([request for request in proxy.requests() if "list-type=2" in request.target]) == 2
            assert cache.ensure(model, refresh=Refresh.ALWAYS).digest == snapshot.digest
            assert len(heads(proxy)) == 1 + len(NAMES)
