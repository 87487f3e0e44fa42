"""The GCS source on a server that speaks its API: the contract of every source, and what a URI, generations and checksums mean here."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from awscrt import checksums
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from modelcache.errors import NotFound, UnsafePath
from modelcache.ranges import ByteRange
from modelcache.sources.gcs import GcsOptions, GcsSource
from modelcache.sources.retrying import RetryingSource
from modelcache.testing.faulted_contract import FaultedContract
from modelcache.testing.listings import listing_of
from modelcache.testing.servers import FakeGcs
from modelcache.testing.source_contract import Place, SourceContract, read
from tests.contract.buckets import BucketContract
from tests.contract.places import Bucket

UNSAFE_NAMES = ("n" * 256, "tab\t")


@contextmanager
def source_of(options: GcsOptions) -> Iterator[GcsSource]:
    source = GcsSource(options)
    try:
        yield source
    finally:
        source.close()


@pytest.fixture
def source(fake_gcs: FakeGcs) -> Iterator[GcsSource]:
    with source_of(GcsOptions(endpoint=fake_gcs.endpoint, anonymous=True)) as made:
        yield made


@pytest.fixture
def bucket(fake_gcs: FakeGcs) -> str:
    return fake_gcs.make_bucket(f"bucket-{secrets.token_hex(6)}")


class TestGcs(SourceContract):
    @pytest.fixture
    def place(self, fake_gcs: FakeGcs, bucket: str, source: GcsSource) -> Place:
        return Bucket("gs", fake_gcs, bucket, source, unsafe_names=UNSAFE_NAMES)


class TestGcsFaulted(FaultedContract, TestGcs):
    pass


class TestGcsRetrying(SourceContract):
    @pytest.fixture
    def place(self, fake_gcs: FakeGcs, bucket: str, source: GcsSource) -> Place:
        return Bucket("gs", fake_gcs, bucket, RetryingSource(source), unsafe_names=UNSAFE_NAMES)


class TestGcsBucket(BucketContract):
    schemes = ("gs", "gcs")

    @pytest.fixture
    def server(self, fake_gcs: FakeGcs) -> FakeGcs:
        return fake_gcs


def test_a_name_is_one_file_even_beside_a_prefix_of_its_name(source: GcsSource, fake_gcs: FakeGcs, bucket: str) -> None:
    generation = fake_gcs.put(bucket, "m/weights.bin", b"one")
    fake_gcs.put(bucket, "m/weights.bin/index", b"other")
    found = listing_of(source, f"gs://{bucket}/m/weights.bin")
    assert [(file.path, read(source, file)) for file in found.files] == [("weights.bin", b"one")]
    assert (found.revision, found.immutable) == (generation, False)


@pytest.mark.parametrize("name", ["m//x", "m/./x", "m/../x", "m/f/", "m/" + "n" * 256])
def test_names_that_no_directory_can_hold_are_refused(source: GcsSource, fake_gcs: FakeGcs, bucket: str, name: str) -> None:
    fake_gcs.put(bucket, name, b"x")
    with pytest.raises(UnsafePath):
        listing_of(source, f"gs://{bucket}/m")


@pytest.fixture
def versioned_bucket(fake_gcs: FakeGcs) -> str:
    return fake_gcs.make_bucket(f"versioned-{secrets.token_hex(6)}", versioned=True)


def test_an_overwritten_generation_is_still_read(source: GcsSource, fake_gcs: FakeGcs, versioned_bucket: str) -> None:
    old = fake_gcs.put(versioned_bucket, "m/f", b"old content")
    [file] = listing_of(source, f"gs://{versioned_bucket}/m").files
    assert file.validator == old
    new = fake_gcs.put(versioned_bucket, "m/f", b"new content!")
    assert read(source, file, ByteRange(0, 3)) == b"old"
    for uri in (f"gs://{versioned_bucket}/m/f?generation={old}", f"gs://{versioned_bucket}/m/f#{old}"):
        pinned = listing_of(source, uri)
        assert (pinned.revision, pinned.immutable) == (old, True)
        assert read(source, pinned.files[0]) == b"old content"
    assert listing_of(source, f"gs://{versioned_bucket}/m/f").revision == new
    with pytest.raises(NotFound):
        listing_of(source, f"gs://{versioned_bucket}/m/f?generation={int(new) + 1}")


def test_what_googles_own_client_put_there_is_read_with_its_checksum(source: GcsSource, fake_gcs: FakeGcs, bucket: str) -> None:
    """A resumable upload in parts, and a composed object, which has a crc32c and no md5."""
    data = os.urandom(600_000)
    anonymous: Any = AnonymousCredentials  # without types
    client = storage.Client("test", anonymous(), client_options={"api_endpoint": fake_gcs.endpoint})
    theirs = client.bucket(bucket)
    with theirs.blob("m/uploaded", chunk_size=256 << 10).open("wb") as file:
        file.write(data)
    theirs.blob("m/small").upload_from_string(b"small")
    theirs.blob("m/composed").compose([theirs.blob("m/uploaded"), theirs.blob("m/small")])
    found = listing_of(source, f"gs://{bucket}/m")
    client.close()
    whole = {file.path: read(source, file) for file in found.files}
    assert whole == {"composed": data + b"small", "small": b"small", "uploaded": data}
    for each in found.files:
        assert [str(digest) for digest in each.digests] == [f"crc32c:{checksums.crc32c(whole[each.path]):08x}"]
