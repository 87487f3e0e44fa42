"""Sources that fsspec serves: the contract of every source on its memory and on a real FTP server, and what is refused."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import fsspec
import pytest

from modelcache.abc.source import Source
from modelcache.sources.any_fsspec import FsspecOptions, FsspecSource
from modelcache.sources.retrying import RetryingSource
from modelcache.testing.faulted_contract import FaultedContract
from modelcache.testing.servers import FtpServer, WebHdfs
from modelcache.testing.source_contract import Place, SourceContract
from modelcache.transport import Timeouts
from modelcache.uri import StorageUri, UriSecrets
from tests.contract.test_source_contract import Directory


@contextmanager
def source_of(uri: StorageUri, secrets_of_uri: UriSecrets | None = None, options: FsspecOptions | None = None) -> Iterator[FsspecSource]:
    source = FsspecSource(uri, secrets_of_uri or UriSecrets(), options or FsspecOptions(), Timeouts())
    try:
        yield source
    finally:
        source.close()


class Memory:
    """A directory of fsspec's filesystem in memory."""

    lists_many = True
    unsafe_names: tuple[str, ...] = ("tab\t", "n" * 256)

    def __init__(self, name: str, source: Source) -> None:
        self.source = source
        self._name = name
        self._files = fsspec.filesystem("memory")

    def put(self, path: str, data: bytes) -> None:
        self._files.pipe_file(f"/{self._name}/{path}", data)

    overwrite = put

    def remove(self, path: str) -> None:
        self._files.rm_file(f"/{self._name}/{path}")

    def uri(self, path: str = "") -> StorageUri:
        return StorageUri("memory", self._name, path)


class ServedDirectory(Directory):
    """A new directory behind a server of files."""

    def __init__(self, scheme: str, server: FtpServer | WebHdfs, source: Source, unsafe_names: tuple[str, ...]) -> None:
        root = server.root / secrets.token_hex(6)
        root.mkdir()
        super().__init__(root, source)
        self.unsafe_names = unsafe_names
        self._scheme = scheme
        self._server = server

    def uri(self, path: str = "") -> StorageUri:
        return StorageUri(self._scheme, self._server.authority, f"{self.root.relative_to(self._server.root)}/{path}".rstrip("/"))


@pytest.fixture(scope="module")
def ftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FtpServer]:
    with FtpServer(tmp_path_factory.mktemp("ftp")) as server:
        yield server


def ftp_secrets(server: FtpServer) -> UriSecrets:
    return UriSecrets(f"{server.user}:{quote(server.password, safe='')}")


class TestMemory(SourceContract):
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        name = secrets.token_hex(6)
        with source_of(StorageUri("memory", name, "")) as source:
            yield Memory(name, source)
        files = fsspec.filesystem("memory")
        if files.exists(f"/{name}"):
            files.rm(f"/{name}", recursive=True)


class TestMemoryFaulted(FaultedContract, TestMemory):
    pass


class TestFtp(SourceContract):
    @pytest.fixture
    def place(self, ftp: FtpServer) -> Iterator[Place]:
        with source_of(StorageUri("ftp", ftp.authority, ""), ftp_secrets(ftp)) as source:
            yield ServedDirectory("ftp", ftp, RetryingSource(source), ("tab\t",))


class TestFtpFaulted(FaultedContract, TestFtp):
    pass


@pytest.fixture(scope="module")
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebHdfs]:
    with WebHdfs(tmp_path_factory.mktemp("hdfs")) as server:
        yield server


class TestWebHdfs(SourceContract):
    @pytest.fixture
    def place(self, hdfs: WebHdfs) -> Iterator[Place]:
        with source_of(StorageUri("webhdfs", hdfs.authority, "")) as source:
            yield ServedDirectory("webhdfs", hdfs, source, ("new\nline", "tab\t"))


class TestWebHdfsFaulted(FaultedContract, TestWebHdfs):
    pass
