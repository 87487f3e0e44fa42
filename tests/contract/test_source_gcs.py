"""The GCS source on a server that speaks its API: the contract of every source, and what a URI, generations and checksums mean here."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from modelcache.abc.source import Listing, Source
from modelcache.patience import Cancellation
from modelcache.sources.gcs import GcsOptions, GcsSource
from modelcache.sources.retrying import RetryingSource
from modelcache.testing.servers import FakeGcs
from modelcache.testing.source_contract import Place, SourceContract, read
from modelcache.uri import StorageUri, parse_uri


class Bucket:
    """A bucket of the server."""

    lists_many = True
    unsafe_names: tuple[str, ...] = ("n" * 256, "tab\t")

    def __init__(self, server: FakeGcs, bucket: str, source: Source) -> None:
        self.source = source
        self._server = server
        self._bucket = bucket

    def put(self, path: str, data: bytes) -> None:
        self._server.put(self._bucket, path, data)

    overwrite = put

    def remove(self, path: str) -> None:
        self._server.delete(self._bucket, path)

    def uri(self, path: str = "") -> StorageUri:
        return StorageUri("gs", self._bucket, path)


@contextmanager
def source_of(options: GcsOptions) -> Iterator[GcsSource]:
    source = GcsSource(options)
    try:
        yield source
    finally:
        source.close()


def listing_of(source: Source, uri: str | StorageUri) -> Listing:
    return source.list(parse_uri(uri)[0] if isinstance(uri, str) else uri, Cancellation())


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
        return Bucket(fake_gcs, bucket, source)


class TestGcsRetrying(SourceContract):
    @pytest.fixture
    def place(self, fake_gcs: FakeGcs, bucket: str, source: GcsSource) -> Place:
        return Bucket(fake_gcs, bucket, RetryingSource(source))


def test_a_prefix_is_everything_below_it(source: GcsSource, fake_gcs: FakeGcs, bucket: str) -> None:
    for name in ("m/config.json", "m/deep/er/weights", "m-other/file", "mm", "m.json"):
        fake_gcs.put(bucket, name, name.encode())
    for uri in (f"gs://{bucket}/m", f"gcs://{bucket}/m/"):
        found = listing_of(source, uri)
        assert [(file.path, file.size_bytes) for file in found.files] == [("config.json", 13), ("deep/er/weights", 17)]
        assert [read(source, file) for file in found.files] == [b"m/config.json", b"m/deep/er/weights"]
        assert not found.immutable
    assert found.origin.endpoint == fake_gcs.endpoint
