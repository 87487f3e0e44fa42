"""Every source keeps the same contract, each against a real origin."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from modelcache.abc.source import Source
from modelcache.sources.http import HttpOptions, HttpSource
from modelcache.sources.local import LocalSource
from modelcache.sources.retrying import RetryingSource
from modelcache.sources.s3 import S3Source
from modelcache.sources.throttled import Allowances, RateLimits
from modelcache.testing.faulted_contract import FaultedContract
from modelcache.testing.hub_sources import RewrittenRepository, hub_source
from modelcache.testing.s3_sources import REGIONS, options_of
from modelcache.testing.servers import Certificate, Nginx, NginxOptions, SeaweedFS
from modelcache.testing.servers.hub import HubServer
from modelcache.testing.source_contract import SMALL, Place, SourceContract, listing
from modelcache.transport import Timeouts
from modelcache.uri import StorageUri, UriSecrets
from tests.contract.places import Bucket

SECOND_NS = 1_000_000_000
LONG_AGO_NS = 1_600_000_000 * SECOND_NS


class Directory:
    """A directory of this machine, as an origin."""

    lists_many = True
    unsafe_names: tuple[str, ...] = ("new\nline", "tab\t", "\udcff")

    def __init__(self, root: Path, source: Source) -> None:
        self.source = source
        self.root = root
        self._versions = 0

    def put(self, path: str, data: bytes) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_name(secrets.token_hex(8))
        fresh.write_bytes(data)
        self._date(fresh)
        fresh.rename(place)

    def overwrite(self, path: str, data: bytes) -> None:
        with (self.root / path).open("r+b") as file:
            file.write(data)
        self._date(self.root / path)

    def remove(self, path: str) -> None:
        (self.root / path).unlink()

    def uri(self, path: str = "") -> StorageUri:
        return StorageUri("file", "", str(self.root / path) if path else str(self.root))

    def _date(self, place: Path) -> None:
        """Each version a second of its own: nginx makes ETags of seconds, and tests are faster than that."""
        self._versions += 1
        at_ns = LONG_AGO_NS + self._versions * SECOND_NS
        os.utime(place, ns=(at_ns, at_ns))


class WebDirectory(Directory):
    """A directory behind a web server."""

    lists_many = False

    def __init__(self, root: Path, source: Source, nginx: Nginx) -> None:
        super().__init__(root, source)
        self._authority = nginx.endpoint.partition("://")[2]
        self._scheme = nginx.endpoint.partition("://")[0]
        self._base = str(root.relative_to(nginx.directory))

    def uri(self, path: str = "") -> StorageUri:
        return StorageUri(self._scheme, self._authority, quote(f"{self._base}/{path}", errors="surrogateescape", safe="/~"))


def http_source(server: Nginx) -> HttpSource:
    scheme, _, authority = server.endpoint.partition("://")
    ca = None if server.options.certificate is None else server.options.certificate.ca
    return HttpSource(StorageUri(scheme, authority, ""), UriSecrets(), HttpOptions(ca_file=ca), Timeouts(20, 20))


def web_place(server: Nginx, source: Source) -> Iterator[Place]:
    root = server.directory / secrets.token_hex(6)
    root.mkdir()
    yield WebDirectory(root, source, server)
    source.close()
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def secure_nginx(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[Nginx]:
    with Nginx(tmp_path_factory.mktemp("nginx-tls"), NginxOptions(certificate=certificate)) as server:
        yield server


@pytest.fixture(scope="module")
def rangeless_nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with Nginx(tmp_path_factory.mktemp("nginx-rangeless"), NginxOptions(more="max_ranges 0;")) as server:
        yield server


class TestLocal(SourceContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        root = tmp_path / "origin"
        root.mkdir()
        return Directory(root, LocalSource())


class TestLocalFaulted(FaultedContract, TestLocal):
    pass


class TestHttp(SourceContract):
    @pytest.fixture
    def place(self, nginx: Nginx) -> Iterator[Place]:
        yield from web_place(nginx, http_source(nginx))


class TestHttpFaulted(FaultedContract, TestHttp):
    pass


class TestHttpWhole(SourceContract):
    """A server that serves no ranges: nothing of a file is gone on with."""

    @pytest.fixture
    def place(self, rangeless_nginx: Nginx) -> Iterator[Place]:
        yield from web_place(rangeless_nginx, http_source(rangeless_nginx))


class TestHttpWholeFaulted(FaultedContract, TestHttpWhole):
    pass


class TestHttps(SourceContract):
    @pytest.fixture
    def place(self, secure_nginx: Nginx) -> Iterator[Place]:
        yield from web_place(secure_nginx, http_source(secure_nginx))


class TestRetrying(SourceContract):
    """The wrapper changes nothing where nothing fails."""

    @pytest.fixture
    def place(self, nginx: Nginx) -> Iterator[Place]:
        yield from web_place(nginx, RetryingSource(http_source(nginx)))


class TestThrottled(SourceContract):
    """Nor does this one, where nothing has to wait."""

    @pytest.fixture
    def place(self, nginx: Nginx) -> Iterator[Place]:
        yield from web_place(nginx, Allowances(RateLimits(1 << 40)).bound(http_source(nginx)))


class TestS3(SourceContract):
    @pytest.fixture(params=list(REGIONS.values()), ids=list(REGIONS))
    def place(self, request: pytest.FixtureRequest, seaweedfs: SeaweedFS, bucket: str) -> Iterator[Place]:
        source = S3Source(options_of(seaweedfs, region=request.param))
        yield Bucket("s3", seaweedfs, bucket, source)  # SeaweedFS tidies unsafe names itself; test_source_s3 lists some from a stand-in
        source.close()


@pytest.fixture(scope="module")
def shared_bucket(seaweedfs: SeaweedFS) -> str:
    return seaweedfs.make_bucket(f"bucket-{secrets.token_hex(6)}")


class TestS3Faulted(FaultedContract, TestS3):
    """In folders of one bucket: a bucket for each test takes longer than the test."""

    @pytest.fixture(params=list(REGIONS.values()), ids=list(REGIONS))
    def place(self, request: pytest.FixtureRequest, seaweedfs: SeaweedFS, shared_bucket: str) -> Iterator[Place]:
        source = S3Source(options_of(seaweedfs, region=request.param))
        yield Bucket("s3", seaweedfs, shared_bucket, source, folder=f"{secrets.token_hex(6)}/")
        source.close()


class TestHub(SourceContract):
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        with HubServer() as server, hub_source(server) as source:
            yield RewrittenRepository(server, source)


class TestHubFaulted(FaultedContract, TestHub):
    pass


class TestHubRetrying(SourceContract):
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        with HubServer() as server, hub_source(server) as source:
            yield RewrittenRepository(server, RetryingSource(source))


class TestSecureHub(SourceContract):
    @pytest.fixture
    def place(self, certificate: Certificate) -> Iterator[Place]:
        with HubServer(certificate, page_entries=2) as server, hub_source(server, ca_file=certificate.ca) as source:
            yield RewrittenRepository(server, source)


def test_a_web_server_is_asked_for_one_byte_per_listing(nginx: Nginx) -> None:
    for place in web_place(nginx, http_source(nginx)):
        place.put("f", SMALL)
        nginx.requests()
        listing(place, "f")
        assert [(request.method, request.status, request.range, request.body_bytes) for request in nginx.requests()] == [
            ("GET", 206, "bytes=0-0", 1)
        ]
