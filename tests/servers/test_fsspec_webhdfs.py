"""WebHDFS through fsspec, against a double of it: what name nodes and data nodes refuse, and that no answer of theirs becomes bytes."""

from __future__ import annotations

import json
import os
import socket
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from modelcache.abc.source import Listing
from modelcache.config import Config
from modelcache.errors import (
    AccessDenied,
    BadConfig,
    InvalidUri,
    ModelCacheError,
    NotFound,
    OriginBusy,
    OriginStalled,
    OriginUnreachable,
    SourceChanged,
)
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.any_fsspec import FsspecOptions, FsspecSource
from modelcache.testing.servers import WebHdfs
from modelcache.testing.servers.webhdfs import refusal
from modelcache.testing.source_contract import read, read_on
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


# -- KServe's secret ----------------------------------------------------------------------------------------------------


def secret_of(directory: Path, **files: str) -> FsspecOptions:
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(f"{text}\n")
    return Config.load({"HOME": "/nowhere", "HDFS_SECRET_DIR": str(directory)}).fsspec


@pytest.mark.parametrize("text", ["hdfs://m/sub", "webhdfs://m/sub", "hdfs://m/sub/config.json"])
def test_with_kserves_secret_a_uri_is_a_path(hdfs: WebHdfs, tmp_path: Path, text: str) -> None:
    options = secret_of(tmp_path / "s", HDFS_NAMENODE=f"http://{hdfs.authority}", USER_PROXY="someone", HEADERS='{"x-token": "t0ken"}')
    uri, secrets = parse_uri(text)
    source = FsspecSource(uri, secrets, options, Timeouts())
    assert {file.path: read(source, file) for file in listed(source, uri).files} == {"config.json": b"{}"}
    assert {query["doas"] for _, _, query in hdfs.books.asked} == {"someone"}
    assert {headers["x-token"] for headers in hdfs.books.headers} == {"t0ken"}
    assert str(source.origin).startswith(f"{uri.scheme}://m?")
    assert "t0ken" not in f"{source.origin}{options}"
    source.close()


def test_the_name_node_that_serves_is_asked(hdfs: WebHdfs, tmp_path: Path) -> None:
    with WebHdfs(tmp_path / "root") as standby:
        standby.books.standby = True
        nodes = f"http://127.0.0.1:1;http://{standby.authority};http://{hdfs.authority}"
        options = secret_of(tmp_path / "s", HDFS_NAMENODE=nodes, HDFS_ROOTPATH="/m/")
        uri, secrets = parse_uri("hdfs://sub")
        source = FsspecSource(uri, secrets, options, Timeouts(connect_s=2, stall_s=2))
        assert [file.path for file in listed(source, uri).files] == ["config.json"]
        assert len(standby.books.asked) == 1
        source.close()
        hdfs.books.standby = True
        source = FsspecSource(uri, secrets, options, Timeouts(connect_s=2, stall_s=2))
        with pytest.raises(OriginBusy):
            listed(source, uri)
        source.close()


def basic(password: str) -> str:
    return json.dumps({"Authorization": f"Basic {b64encode(f'me:{password}'.encode()).decode()}"})


def test_a_secret_that_is_replaced_in_mid_fetch_is_read_again(hdfs: WebHdfs, tmp_path: Path) -> None:
    data = os.urandom((9 << 20) + 5)
    (hdfs.root / "m" / "large").write_bytes(data)
    hdfs.books.basic = ("me", "one")
    options = secret_of(tmp_path / "s", HDFS_NAMENODE=f"http://{hdfs.authority}", HEADERS=basic("one"))
    uri, secrets = parse_uri("hdfs://m/large")
    source = FsspecSource(uri, secrets, options, Timeouts())
    [file] = listed(source, uri).files
    body = source.open(file, ByteRange(0, file.size_bytes), Cancellation())
    got = read_on(body, 1 << 20)
    hdfs.books.basic = ("me", "two")
    secret_of(tmp_path / "s", HEADERS=basic("two"))
    assert got + read_on(body, len(data)) == data
    body.close()
    hdfs.books.basic = ("me", "last")
    secret_of(tmp_path / "s", HEADERS=basic("last"))
    assert listed(source, uri).files == (file,)
    hdfs.books.basic = ("me", "three")
    with pytest.raises(AccessDenied):
        source.open(file, ByteRange(0, 10), Cancellation())
    secret_of(tmp_path / "s", HDFS_NAMENODE="http://elsewhere:1")
    with pytest.raises(BadConfig, match="another place"):
        source.open(file, ByteRange(0, 10), Cancellation())
    source.close()


def test_a_name_node_that_gives_its_place_to_another_in_mid_fetch(hdfs: WebHdfs, tmp_path: Path) -> None:
    data = os.urandom((9 << 20) + 5)
    (hdfs.root / "m" / "large").write_bytes(data)
    with WebHdfs(hdfs.root) as other:
        other.books.standby = True
        options = secret_of(tmp_path / "s", HDFS_NAMENODE=f"http://{hdfs.authority};http://{other.authority}")
        uri, secrets = parse_uri("hdfs://m/large")
        source = FsspecSource(uri, secrets, options, Timeouts())
        [file] = listed(source, uri).files
        body = source.open(file, ByteRange(0, file.size_bytes), Cancellation())
        got = read_on(body, 1 << 20)
        hdfs.books.standby, other.books.standby = True, False
        assert got + read_on(body, len(data)) == data
        body.close()
        source.close()


UNUSABLE = [
    ({}, "names no name node"),
    ({"HDFS_NAMENODE": "nn:9870"}, "HTTPS?"),
    ({"HDFS_NAMENODE": "http://nn:x"}, "https"),
    ({"HDFS_NAMENODE": "http://nn:1", "KERBEROS_PRINCIPAL": "me"}, "Kerberos"),
    ({"HDFS_NAMENODE": "http://nn:1", "HEADERS": '{"a": "s3cret'}, "JSON"),
    ({"HDFS_NAMENODE": "http://nn:1", "HEADERS": "[]"}, "JSON"),
    ({"HDFS_NAMENODE": "x" * 70_000}, "bytes"),
]


@pytest.mark.parametrize(("files", "why"), UNUSABLE)
def test_a_secret_that_can_t_be_used_is_told_by_its_file(tmp_path: Path, files: dict[str, str], why: str) -> None:
    uri, secrets = parse_uri("hdfs://m")
    with pytest.raises(BadConfig, match=f"(?i){why}") as caught:
        FsspecSource(uri, secrets, secret_of(tmp_path / "s", **files), Timeouts())
    assert "s3cret" not in str(caught.value.as_dict())
    with pytest.raises(InvalidUri):
        FsspecSource(*parse_uri("hdfs://me:pw@m/x"), secret_of(tmp_path / "t", HDFS_NAMENODE="http://nn:1"), Timeouts())
