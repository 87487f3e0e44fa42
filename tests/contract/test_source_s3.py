"""The S3 source on a real S3 server, beyond the contract of every source: what a URI stands for, versions, checksums."""

from __future__ import annotations

import hashlib
import os
import secrets
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcache.abc.source import RemoteFile
from modelcache.chunks import CHUNK_BYTES
from modelcache.digest import Digest
from modelcache.errors import InvalidUri, NotFound, UnsafePath
from modelcache.paths import checked_path
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.s3 import S3Source
from modelcache.testing.listings import listing_of
from modelcache.testing.s3_sources import REGIONS, options_of, proxied, source_of
from modelcache.testing.servers import SeaweedFS
from modelcache.testing.source_contract import read
from modelcache.units import MIB
from modelcache.uri import StorageUri
from tests.contract.buckets import BucketContract

CHECKSUMS = ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256")


@pytest.fixture(params=list(REGIONS.values()), ids=list(REGIONS))
def source(request: pytest.FixtureRequest, seaweedfs: SeaweedFS) -> Iterator[S3Source]:
    with source_of(options_of(seaweedfs, region=request.param)) as made:
        yield made


# -- what a URI stands for ------------------------------------------------------------------------------------------


class TestS3Bucket(BucketContract):
    schemes = ("s3", "s3a")

    @pytest.fixture
    def server(self, seaweedfs: SeaweedFS) -> SeaweedFS:
        return seaweedfs


def test_a_bucket_is_everything_in_it(source: S3Source, seaweedfs: SeaweedFS, bucket: str) -> None:
    for key in ("b", "a/c"):
        seaweedfs.put(bucket, key, b"x")
    assert [file.path for file in listing_of(source, f"s3://{bucket}").files] == ["a/c", "b"]


def test_a_key_is_one_file_even_beside_a_prefix_of_its_name(source: S3Source, seaweedfs: SeaweedFS, bucket: str) -> None:
    seaweedfs.put(bucket, "m/weights.bin", b"one")
    seaweedfs.put(bucket, "m/weights.bin.index", b"other")
    found = listing_of(source, f"s3://{bucket}/m/weights.bin")
    assert [(file.path, read(source, file)) for file in found.files] == [("weights.bin", b"one")]


@pytest.mark.parametrize("path", ["", "/nothing", "/m/a.b", "/m/a/"])
def test_nothing_there_is_not_found(source: S3Source, seaweedfs: SeaweedFS, bucket: str, path: str) -> None:
    if path:
        seaweedfs.put(bucket, "m/a", b"x")
    if path == "/m/a/":  # a trailing slash changes nothing
        assert listing_of(source, f"s3://{bucket}{path}").files[0].path == "a"
        return
    with pytest.raises(NotFound) as caught:
        listing_of(source, f"s3://{bucket}{path}")
    assert caught.value.address == f"s3://{bucket}{path}"


def test_a_missing_bucket_is_named(source: S3Source) -> None:
    for uri in ("s3://no-such-bucket", "s3://no-such-bucket/m"):
        with pytest.raises(NotFound, match="the bucket does not exist"):
            listing_of(source, uri)


@pytest.mark.parametrize("key", ["m/../x", "m//x", "m/./x", "m/" + "n" * 256, "m/new\nline"])
def test_names_that_no_directory_can_hold_are_refused(seaweedfs: SeaweedFS, bucket: str, key: str) -> None:
    """nginx answers for the store here: SeaweedFS tidies such names itself."""
    listed = (
        f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>false</IsTruncated><Contents><Key>{key.replace(chr(10), '%0A')}</Key>"
        "<Size>1</Size></Contents><EncodingType>url</EncodingType></ListBucketResult>"
    )
    more = f"location = /{bucket} {{ default_type application/xml; return 200 '{listed}'; }}"
    with (
        proxied(seaweedfs, more) as proxy,
        source_of(options_of(seaweedfs, endpoint=proxy.endpoint)) as source,
        pytest.raises(UnsafePath),
    ):
        listing_of(source, f"s3://{bucket}/m")


def test_a_file_that_is_also_a_folder_is_refused(seaweedfs: SeaweedFS, bucket: str) -> None:
    more = (
        f"location = /{bucket} {{ default_type application/xml; return 200 '<ListBucketResult>"
        "<Contents><Key>m/a</Key><Size>1</Size></Contents><Contents><Key>m/a/b</Key><Size>1</Size></Contents></ListBucketResult>'; }"
    )
    with (
        proxied(seaweedfs, more) as proxy,
        source_of(options_of(seaweedfs, endpoint=proxy.endpoint)) as source,
        pytest.raises(UnsafePath, match="also the directory"),
    ):
        listing_of(source, f"s3://{bucket}/m")


def test_directory_buckets_are_refused_by_name(source: S3Source) -> None:
    with pytest.raises(InvalidUri, match="directory buckets"):
        listing_of(source, StorageUri("s3", "models--use1-az4--x-s3", "m"))


def test_more_than_a_page_of_keys(source: S3Source, seaweedfs: SeaweedFS, bucket: str) -> None:
    names = [f"{number:05}" for number in range(1005)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: seaweedfs.put(bucket, f"m/{name}", name.encode()), names))
    found = listing_of(source, f"s3://{bucket}/m")
    assert [file.path for file in found.files] == names
    assert read(source, found.files[-1]) == b"01004"


# -- names ----------------------------------------------------------------------------------------------------------

ODD_NAMES = ["a b", "ünïcödé-模型-🤖", "100%", "%41%2F", "a+b", "what?", "n#1", "a&b=c", "'\"<>", "~-._", "a:b@c", "{}[]|^`", ";,$!*()"]


def test_odd_names_are_listed_and_read(source: S3Source, seaweedfs: SeaweedFS, bucket: str) -> None:
    for name in ODD_NAMES:
        seaweedfs.put(bucket, f"m/{name}/{name}", name.encode())
    found = listing_of(source, f"s3://{bucket}/m")
    assert sorted(file.path for file in found.files) == sorted(f"{name}/{name}" for name in ODD_NAMES)
    for file in found.files:
        assert read(source, file).decode() == file.path.partition("/")[0]
        single = listing_of(source, StorageUri("s3", bucket, f"m/{file.path}"))
        assert (single.files[0].path, single.files[0].validator) == (file.path.rpartition("/")[2], file.validator)


@pytest.fixture(scope="module")
def bucket_of_names(seaweedfs: SeaweedFS) -> str:
    return seaweedfs.make_bucket(f"names-{secrets.token_hex(6)}")


def _storable(name: str) -> bool:
    try:
        checked_path(name)
    except UnsafePath:
        return False
    return "\\" not in name  # SeaweedFS takes it for a slash


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn")), min_size=1, max_size=40).filter(_storable)


@given(name=NAMES)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_is_read_under_its_own_name(source: S3Source, seaweedfs: SeaweedFS, bucket_of_names: str, name: str) -> None:
    prefix = secrets.token_hex(6)
    seaweedfs.put(bucket_of_names, f"{prefix}/{name}", name.encode())
    [file] = listing_of(source, f"s3://{bucket_of_names}/{prefix}").files
    assert (file.path, read(source, file).decode()) == (name, name)


def test_equal_content_gives_an_equal_revision(source: S3Source, seaweedfs: SeaweedFS, bucket: str) -> None:
    for prefix in ("a", "b"):
        seaweedfs.put(bucket, f"{prefix}/f", b"content")
    revisions = {listing_of(source, f"s3://{bucket}/{prefix}").revision for prefix in ("a", "b", "a/")}
    assert len(revisions) == 1


# -- versions -------------------------------------------------------------------------------------------------------


def test_an_overwritten_version_is_still_read(source: S3Source, seaweedfs: SeaweedFS, versioned_bucket: str) -> None:
    seaweedfs.put(versioned_bucket, "m/f", b"old content")
    [file] = listing_of(source, f"s3://{versioned_bucket}/m").files
    seaweedfs.put(versioned_bucket, "m/f", b"new content")
    assert read(source, file, ByteRange(0, 3)) == b"old"
    seaweedfs.delete(versioned_bucket, "m/f")
    assert read(source, file) == b"old content"


def test_a_version_of_one_object_is_asked_for_by_id(source: S3Source, seaweedfs: SeaweedFS, versioned_bucket: str) -> None:
    old = seaweedfs.put(versioned_bucket, "m/f", b"old content")
    new = seaweedfs.put(versioned_bucket, "m/f", b"new content!")
    assert old.version_id is not None
    assert new.version_id is not None
    pinned = listing_of(source, f"s3://{versioned_bucket}/m/f?versionId={old.version_id}")
    assert (pinned.revision, pinned.immutable) == (old.version_id, True)
    assert read(source, pinned.files[0]) == b"old content"
    latest = listing_of(source, f"s3://{versioned_bucket}/m/f")
    assert (latest.revision, latest.immutable) == (new.version_id, False)
    unknown = old.version_id[:-2] + ("00" if old.version_id[-2:] != "00" else "11")
    with pytest.raises(NotFound):
        listing_of(source, f"s3://{versioned_bucket}/m/f?versionId={unknown}")


def test_without_the_right_to_versions_the_etag_alone_guards(seaweedfs: SeaweedFS, versioned_bucket: str) -> None:
    """s3:GetObjectVersion is a right of its own; the proxy refuses what a policy without it refuses."""
    seaweedfs.put(versioned_bucket, "m/f", b"content")
    more = "if ($arg_versionId) { return 403; }"
    with proxied(seaweedfs, more) as proxy, source_of(options_of(seaweedfs, endpoint=proxy.endpoint)) as source:
        for uri in (f"s3://{versioned_bucket}/m", f"s3://{versioned_bucket}/m/f"):
            found = listing_of(source, uri)
            assert read(source, found.files[0]) == b"content"
            assert found.revision.startswith("listing-")


# -- checksums ------------------------------------------------------------------------------------------------------


def told_with_bytes(source: S3Source, file: RemoteFile) -> tuple[Digest, ...]:
    body = source.open(file, ByteRange(0, file.size_bytes), Cancellation())
    body.close()
    return body.stated


@pytest.mark.parametrize("size_bytes", [100_000, CHUNK_BYTES + 1])
def test_every_checksum_of_a_whole_object_is_stated(source: S3Source, seaweedfs: SeaweedFS, bucket: str, size_bytes: int) -> None:
    """Of a small one with its bytes, of another in the listing."""
    data = os.urandom(size_bytes)
    for name in CHECKSUMS:
        seaweedfs.put(bucket, f"m/{name}", data, checksum=name)
    files = listing_of(source, f"s3://{bucket}/m").files
    stated = {file.path: file.digests or told_with_bytes(source, file) for file in files}
    assert [bool(file.digests) for file in files].count(True) == (1 if size_bytes <= CHUNK_BYTES else 5)  # of the newest, always
    assert all([digest.algorithm for digest in digests] == [name.lower()] for name, digests in stated.items())
    assert set(stated) == set(CHECKSUMS)
    assert stated["SHA256"][0].hex == hashlib.sha256(data).hexdigest()
    assert stated["SHA1"][0].hex == hashlib.sha1(data).hexdigest()
    assert stated["CRC32"][0].hex == f"{zlib.crc32(data):08x}"
    from awscrt import checksums

    assert stated["CRC32C"][0].hex == f"{checksums.crc32c(data):08x}"
    assert stated["CRC64NVME"][0].hex == f"{checksums.crc64nvme(data):016x}"
    [single] = listing_of(source, f"s3://{bucket}/m/SHA256").files
    assert single.digests == stated["SHA256"]


def test_a_checksum_of_checksums_is_left_out(source: S3Source, seaweedfs: SeaweedFS, bucket: str) -> None:
    put = seaweedfs.put_parts(bucket, "m/f", [b"a" * 5 * MIB, b"b"], checksum="SHA256")
    head = seaweedfs.client().head_object(Bucket=bucket, Key="m/f", ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"].endswith("-2")
    [file] = listing_of(source, f"s3://{bucket}/m").files
    assert (file.digests, file.validator, file.size_bytes) == ((), put.etag, 5 * MIB + 1)
    assert read(source, file, ByteRange(5 * MIB - 1, 5 * MIB + 1)) == b"ab"


def test_an_etag_is_never_taken_for_an_md5(source: S3Source, seaweedfs: SeaweedFS, bucket: str) -> None:
    put = seaweedfs.put(bucket, "m/f", b"content")
    [file] = listing_of(source, f"s3://{bucket}/m").files
    assert file.validator == put.etag
    assert file.digests == ()
