"""Alibaba Cloud's OSS through ossfs, against a double: the contract of every source, and refusals that ossfs would swallow."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelcache.abc.source import Listing, Source
from modelcache.errors import AccessDenied, BadConfig, NotFound, OriginUnreachable
from modelcache.patience import Cancellation
from modelcache.sources.any_fsspec import FsspecOptions, FsspecSource
from modelcache.testing.faulted_contract import FaultedContract
from modelcache.testing.servers.oss import Oss
from modelcache.testing.source_contract import Place, SourceContract, read
from modelcache.transport import Timeouts
from modelcache.uri import StorageUri, UriSecrets, parse_uri
from tests.contract.test_source_contract import Directory

pytestmark = pytest.mark.beside("ossfs")
LONG_AGO_S = 1_600_000_000
MODEL = {"config.json": b"{}", "w/model.safetensors": bytes(range(256)) * 40_000, "empty": b""}


@pytest.fixture
def oss(tmp_path: Path) -> Iterator[Oss]:
    root = tmp_path / "oss"
    for path, data in MODEL.items():
        place = root / "models" / "m" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        os.utime(place, (LONG_AGO_S, LONG_AGO_S))
    with Oss(root, "AK") as server:
        yield server


@contextmanager
def opened(server: Oss, text: str = "oss://models/m", **arguments: str) -> Iterator[tuple[FsspecSource, StorageUri]]:
    uri, told = parse_uri(text)
    options = FsspecOptions({"oss": {"endpoint": server.endpoint, "key": "AK", "secret": "SK"} | arguments})
    source = FsspecSource(uri, told, options, Timeouts())
    try:
        yield source, uri
    finally:
        source.close()


def listed(source: FsspecSource, uri: StorageUri) -> Listing:
    return source.list(uri, Cancellation())


def test_a_model_comes_whole(oss: Oss) -> None:
    with opened(oss) as (source, uri):
        assert {file.path: read(source, file) for file in listed(source, uri).files} == MODEL
        assert "SK" not in str(source.origin)


def test_a_part_that_may_not_be_listed_is_not_left_out(oss: Oss) -> None:
    oss.rights.denied.append("m/w")
    with opened(oss) as (source, uri), pytest.raises(AccessDenied):
        listed(source, uri)


def test_what_is_refused_and_what_is_missing(oss: Oss) -> None:
    for text in ("oss://models/nothing", "oss://nobucket/m"):
        with opened(oss, text) as (source, uri), pytest.raises(NotFound):
            listed(source, uri)
    with opened(oss, key="other") as (source, uri), pytest.raises(AccessDenied):
        listed(source, uri)
    with opened(oss, endpoint="http://127.0.0.1:1") as (source, uri), pytest.raises(OriginUnreachable):
        listed(source, uri)
    with pytest.raises(BadConfig, match="endpoint"):
        FsspecSource(*parse_uri("oss://models/m"), FsspecOptions(), Timeouts())


class Bucket(Directory):
    """A bucket of the double."""

    unsafe_names: tuple[str, ...] = ()

    def __init__(self, root: Path, source: Source) -> None:
        super().__init__(root, source)

    def uri(self, path: str = "") -> StorageUri:
        return StorageUri("oss", self.root.name, path)


class TestOss(SourceContract):
    @pytest.fixture
    def place(self, oss: Oss) -> Iterator[Place]:
        root = oss.root / f"bucket-{secrets.token_hex(6)}"
        root.mkdir()
        options = FsspecOptions({"oss": {"endpoint": oss.endpoint, "key": "AK", "secret": "SK"}})
        source = FsspecSource(StorageUri("oss", root.name, ""), UriSecrets(), options, Timeouts())
        try:
            yield Bucket(root, source)
        finally:
            source.close()


class TestOssFaulted(FaultedContract, TestOss):
    pass
