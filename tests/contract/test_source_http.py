"""What the contract does not say about web servers: how a version is named, credentials, and what a request costs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelcache.abc.source import RemoteFile
from modelcache.errors import AccessDenied, InvalidUri, NotFound, SourceChanged, UnsafePath
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.http import HttpOptions, HttpSource
from modelcache.testing import faults
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.servers import Nginx, NginxOptions
from modelcache.testing.source_contract import SMALL, read
from modelcache.transport import Timeouts
from modelcache.uri import StorageUri, UriSecrets, parse_uri

NAME = "weights.bin"


class Reader:
    """A source for one URL."""

    def __init__(self, url: str, options: HttpOptions | None = None) -> None:
        self.uri, found = parse_uri(url)
        self.source = HttpSource(self.uri, found, options or HttpOptions(), Timeouts(20, 20))

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()

    def list(self) -> RemoteFile:
        [file] = self.source.list(self.uri, Cancellation()).files
        return file


@pytest.fixture
def folder(nginx: Nginx) -> Path:
    made = nginx.directory / secrets.token_hex(6)
    made.mkdir()
    (made / NAME).write_bytes(SMALL)
    nginx.requests()
    return made


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        running.put(f"/{NAME}", SMALL)
        yield running


def test_a_listing_is_one_request_and_a_range_without_a_digest_one_more_for_its_end(nginx: Nginx, folder: Path) -> None:
    with Reader(f"{nginx.endpoint}/{folder.name}/{NAME}") as reader:
        file = reader.list()
        assert read(reader.source, file, ByteRange(10, 20)) == SMALL[10:20]
    assert [(asked.method, asked.status, asked.range, asked.body_bytes) for asked in nginx.requests()] == [
        ("GET", 206, "bytes=0-0", 1),
        ("GET", 206, "bytes=10-19", 10),
        ("GET", 206, "bytes=0-0", 1),
    ]


def test_a_range_with_a_stated_digest_is_one_request(server: FaultServer) -> None:
    server.put(f"/{NAME}", SMALL, headers={"X-Checksum-Md5": "0" * 32})
    with Reader(f"{server.endpoint}/{NAME}") as reader:
        file = reader.list()
        assert len(file.digests) == 1
        read(reader.source, file)
    assert len(server.received) == 2


def test_connections_are_as_many_as_readers_were_at_once(server: FaultServer) -> None:
    with Reader(f"{server.endpoint}/{NAME}") as reader:
        file = reader.list()
        with ThreadPoolExecutor(4) as threads:
            for _ in range(5):
                assert set(threads.map(lambda _: read(reader.source, file), range(8))) == {SMALL}
    assert server.connections <= 5


# -- versions -------------------------------------------------------------------------------------------------------------

DATES = {"Last-Modified": "Tue, 01 Jan 2030 00:00:00 GMT"}


@pytest.mark.parametrize(
    ("etag", "headers", "validator"),
    [
        ('"v1"', DATES, '"v1"'),
        ('W/"v1"', {}, ""),
        ("v1", {}, ""),
        ('"\xe9"', {}, ""),
        (None, {}, ""),
        (None, DATES | {"Date": "Tue, 01 Jan 2030 00:01:00 GMT"}, DATES["Last-Modified"]),
        ('W/"v1"', DATES | {"Date": "Wed, 02 Jan 2030 00:00:00 GMT"}, DATES["Last-Modified"]),
        (None, DATES | {"Date": "Tue, 01 Jan 2030 00:00:59 GMT"}, ""),
        (None, DATES | {"Date": "Tue, 01 Jan 2029 00:00:00 GMT"}, ""),
        (None, {"Last-Modified": "yesterday", "Date": "Tue, 01 Jan 2030 00:00:59 GMT"}, ""),
        (None, {"Last-Modified": "Tue, 01 Jan 2030 99999999999:00:00 GMT", "Date": "Tue, 01 Jan 2030 00:00:59 GMT"}, ""),
    ],
)
def test_a_version_is_named_by_a_strong_etag_or_a_settled_date(
    server: FaultServer, etag: str | None, headers: dict[str, str], validator: str
) -> None:
    server.put(f"/{NAME}", SMALL, etag=etag, headers=headers)
    with Reader(f"{server.endpoint}/{NAME}") as reader:
        file = reader.list()
        assert (file.validator, file.resumable) == (validator, validator != "")
        assert read(reader.source, file) == SMALL
    sent = server.received[1].headers
    assert sent.get("if-match") == (validator if validator.startswith('"') else None)
    assert sent.get("if-unmodified-since") == (validator if validator and not validator.startswith('"') else None)


def test_another_last_modified_has_changed(server: FaultServer) -> None:
    settled = DATES | {"Date": "Wed, 02 Jan 2030 00:00:00 GMT"}
    server.put(f"/{NAME}", SMALL, etag=None, headers=settled)
    with Reader(f"{server.endpoint}/{NAME}") as reader:
        file = reader.list()
        server.put(f"/{NAME}", SMALL, etag=None, headers=settled | {"Last-Modified": "Tue, 01 Jan 2030 00:00:01 GMT"})
        with pytest.raises(SourceChanged):
            read(reader.source, file)


def test_nginx_refuses_a_replaced_file_itself(nginx: Nginx, folder: Path) -> None:
    with Reader(f"{nginx.endpoint}/{folder.name}/{NAME}") as reader:
        file = reader.list()
        os.utime(folder / NAME, (1, 1))
        with pytest.raises(SourceChanged):
            read(reader.source, file)
    assert [asked.status for asked in nginx.requests()] == [206, 412]


# -- names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "?x=1"])
def test_a_url_without_a_file_name_is_refused(server: FaultServer, path: str) -> None:
    with Reader(f"{server.endpoint}/{path}") as reader, pytest.raises(InvalidUri, match="names no file"):
        reader.list()
    assert server.received == []


@pytest.mark.parametrize("segment", ["a%2Fb", "a%00b", "%2E%2E", "%ff", "n" * 300])
def test_an_unsafe_name_is_refused_before_anything_is_asked(server: FaultServer, segment: str) -> None:
    uri = StorageUri("http", f"127.0.0.1:{server.port}", f"dir/{segment}")
    source = HttpSource(uri, UriSecrets(), HttpOptions(), Timeouts(20, 20))
    with pytest.raises(UnsafePath):
        source.list(uri, Cancellation())
    source.close()
    assert server.received == []


def test_the_query_that_names_the_file_is_sent(server: FaultServer) -> None:
    with Reader(f"{server.endpoint}/{NAME}?version=3&token=s3cret") as reader:
        file = reader.list()
    assert server.received[0].target == f"/{NAME}?version=3&token=s3cret"
    assert file.locator == f"{server.endpoint}/{NAME}?version=3"
    assert "s3cret" not in f"{file!r} {reader.source!r} {reader.source.__dict__!r}"


# -- credentials ----------------------------------------------------------------------------------------------------------


def test_a_password_opens_a_real_server(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(SMALL)
    with Nginx(tmp_path, NginxOptions(user="alice", password="p@ss word")) as nginx:
        inside = nginx.endpoint.replace("://", "://alice:p%40ss%20word@")
        with Reader(f"{inside}/{NAME}") as reader:
            assert read(reader.source, reader.list()) == SMALL
        for endpoint in (nginx.endpoint, nginx.endpoint.replace("://", "://alice:wrong@")):
            with Reader(f"{endpoint}/{NAME}") as reader, pytest.raises(AccessDenied):
                reader.list()


def test_configured_headers_go_to_their_host_alone(server: FaultServer) -> None:
    with FaultServer() as other:
        other.put("/blob", SMALL)
        server.fail(f"/{NAME}", faults.redirect(f"{other.endpoint}/blob"))
        options = HttpOptions(
            headers={
                "127.0.0.1": {"X-Any-Port": "a"},
                f"127.0.0.1:{server.port}": {"Authorization": "Bearer t0ken"},
                "localhost": {"X-Wrong": "w"},
            }
        )
        with Reader(f"{server.endpoint}/{NAME}", options) as reader:
            assert reader.list().size_bytes == len(SMALL)
        [asked] = server.received
        assert (asked.headers["authorization"], asked.headers["x-any-port"]) == ("Bearer t0ken", "a")
        assert "x-wrong" not in asked.headers
        assert {"authorization", "x-any-port"}.isdisjoint(other.received[0].headers)
        assert "t0ken" not in repr(options)


def test_a_credential_is_of_one_origin(server: FaultServer) -> None:
    with FaultServer() as other:
        other.put(f"/{NAME}", SMALL)
        with Reader(f"{server.endpoint.replace('://', '://u:p@')}/{NAME}?token=s3cret") as reader:
            reader.source.list(parse_uri(f"{other.endpoint}/{NAME}")[0], Cancellation())
        assert "authorization" not in other.received[0].headers
        assert other.received[0].target == f"/{NAME}"


def test_userinfo_wins_over_a_configured_authorization(server: FaultServer) -> None:
    options = HttpOptions(headers={"127.0.0.1": {"AUTHORIZATION": "Bearer t0ken"}})
    with Reader(f"{server.endpoint.replace('://', '://u:p@')}/{NAME}", options) as reader:
        reader.list()
    assert server.received[0].headers["authorization"] == "Basic dTpw"


def test_an_absent_file_is_not_found(nginx: Nginx, folder: Path) -> None:
    with Reader(f"{nginx.endpoint}/{folder.name}/absent.bin") as reader, pytest.raises(NotFound) as caught:
        reader.list()
    assert "absent.bin" in str(caught.value)
