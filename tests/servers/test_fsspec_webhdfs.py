"""WebHDFS through fsspec, against a double of it: what name nodes and data nodes refuse, and that no answer of theirs becomes bytes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from modelcache.abc.source import Listing
from modelcache.errors import AccessDenied, ModelCacheError, NotFound, OriginBusy, OriginStalled, OriginUnreachable, SourceChanged
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.any_fsspec import FsspecOptions, FsspecSource
from modelcache.testing.servers import WebHdfs
from modelcache.testing.servers.webhdfs import refusal
from modelcache.testing.source_contract import read
from modelcache.transport import Timeouts
from modelcache.uri import StorageUri, UriSecrets, parse_uri

LONG_AGO_S = 1_600_000_000
ANSWER = refusal("AccessControlException", "x" * 100)


@pytest.fixture
def hdfs(tmp_path: Path) -> Iterator[WebHdfs]:
    root = tmp_path / "root"
    (root / "m" / "sub").mkdir(parents=True)
    for name, data in {"weights": b"w" * len(ANSWER), "sub/config.json": b"{}", "ünï#c?%41": b"odd"}.items():
        (root / "m" / name).write_bytes(data)
        os.utime(root / "m" / name, (LONG_AGO_S, LONG_AGO_S))
    with WebHdfs(root) as server:
        yield server


@contextmanager
def opened(server: WebHdfs, path: str = "m", *, user: str = "", **arguments: object) -> Iterator[tuple[FsspecSource, StorageUri]]:
    uri, secrets = parse_uri(f"webhdfs://{user}{server.authority}/{path}")
    source = FsspecSource(uri, secrets, FsspecOptions({"webhdfs": arguments}), Timeouts(connect_s=2, stall_s=2))
    try:
        yield source, uri
    finally:
        source.close()


def listed(source: FsspecSource, uri: StorageUri) -> Listing:
    return source.list(uri, Cancellation())


def test_a_tree_is_listed_and_read(hdfs: WebHdfs) -> None:
    with opened(hdfs) as (source, uri):
        found = {file.path: read(source, file) for file in listed(source, uri).files}
    assert found == {"weights": b"w" * len(ANSWER), "sub/config.json": b"{}", "ünï#c?%41": b"odd"}
    assert {operation for operation, _, _ in hdfs.books.asked} == {"GETFILESTATUS", "LISTSTATUS", "OPEN"}


DATA_NODES: list[tuple[int, bytes, type[ModelCacheError]]] = [
    (403, ANSWER, AccessDenied),
    (401, ANSWER, AccessDenied),
    (404, ANSWER, SourceChanged),
    (503, ANSWER, OriginBusy),
    (403, b"<html>" + b"x" * (len(ANSWER) - 6), AccessDenied),
]


@pytest.mark.parametrize(("status", "body", "expected"), DATA_NODES)
def test_what_a_data_node_says_of_an_error_is_never_taken_for_the_file(
    hdfs: WebHdfs, status: int, body: bytes, expected: type[ModelCacheError]
) -> None:
    """fsspec's own reading doesn't look at the status. The body has as many bytes as were asked for."""
    with opened(hdfs, "m/weights") as (source, uri):
        [file] = listed(source, uri).files
        hdfs.books.instead.append((status, body))
        with pytest.raises(expected):
            source.open(file, ByteRange(0, file.size_bytes), Cancellation())
        assert read(source, file) == b"w" * len(ANSWER)


def test_who_may_not_read_is_told_so(hdfs: WebHdfs) -> None:
    hdfs.books.denied.append("/m/sub")
    with opened(hdfs) as (source, uri), pytest.raises(AccessDenied):
        listed(source, uri)
    with opened(hdfs, "nothing") as (source, uri), pytest.raises(NotFound):
        listed(source, uri)


def test_a_user_and_a_password(hdfs: WebHdfs) -> None:
    with opened(hdfs, user="me@") as (source, uri):
        listed(source, uri)
    assert all(query["user.name"] == "me" for _, _, query in hdfs.books.asked)
    hdfs.books.basic = ("me", "p@ss")
    with opened(hdfs, user=f"me:{quote('p@ss')}@") as (source, uri):
        assert len(listed(source, uri).files) == 3
    with opened(hdfs, user="me:wrong@") as (source, uri), pytest.raises(AccessDenied) as caught:
        listed(source, uri)
    assert "wrong" not in str(caught.value.as_dict())


def test_a_node_that_is_not_there_and_one_that_does_not_answer(hdfs: WebHdfs) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        uri = StorageUri("webhdfs", f"127.0.0.1:{silent.getsockname()[1]}", "m")
        source = FsspecSource(uri, UriSecrets(), FsspecOptions(), Timeouts(connect_s=0.5, stall_s=0.5))
        with pytest.raises(OriginUnreachable):
            listed(source, uri)
        silent.listen(1)
        with pytest.raises(OriginStalled):
            listed(source, uri)
        source.close()
