"""SFTP through fsspec and paramiko, against asyncssh: the contract of every source, a password, a file that links to another."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from modelcache.abc.source import Source
from modelcache.errors import AccessDenied, OriginUnreachable
from modelcache.patience import Cancellation
from modelcache.sources.any_fsspec import FsspecOptions, FsspecSource
from modelcache.testing.faulted_contract import FaultedContract
from modelcache.testing.servers.sftp import SftpServer
from modelcache.testing.source_contract import Place, SourceContract, read
from modelcache.transport import Timeouts
from modelcache.uri import StorageUri, UriSecrets
from tests.contract.test_source_contract import Directory

pytestmark = pytest.mark.beside("paramiko")


@pytest.fixture(scope="module")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SftpServer]:
    with SftpServer(tmp_path_factory.mktemp("sftp")) as server:
        yield server


@contextmanager
def source_of(server: SftpServer, password: str | None = None, authority: str | None = None) -> Iterator[FsspecSource]:
    told = UriSecrets(f"{server.user}:{quote(password or server.password, safe='')}")
    source = FsspecSource(StorageUri("sftp", authority or server.authority, ""), told, FsspecOptions(), Timeouts())
    try:
        yield source
    finally:
        source.close()


def test_who_is_refused_and_where_nobody_is(sftp: SftpServer) -> None:
    uri = StorageUri("sftp", sftp.authority, "")
    with source_of(sftp, "wr0ng") as source, pytest.raises(AccessDenied) as denied:
        source.list(uri, Cancellation())
    assert "wr0ng" not in str(denied.value.as_dict())
    with source_of(sftp, authority="127.0.0.1:1") as source, pytest.raises(OriginUnreachable):
        source.list(StorageUri("sftp", "127.0.0.1:1", ""), Cancellation())


def test_a_link_is_the_file_that_it_leads_to(sftp: SftpServer) -> None:
    (sftp.root / "linked" / "m").mkdir(parents=True)
    (sftp.root / "linked" / "blob").write_bytes(b"weights")
    (sftp.root / "linked" / "m" / "w").symlink_to("../blob")
    with source_of(sftp) as source:
        [file] = source.list(StorageUri("sftp", sftp.authority, "linked/m"), Cancellation()).files
        assert (file.path, read(source, file)) == ("w", b"weights")


class SftpDirectory(Directory):
    """A directory behind an SFTP server."""

    unsafe_names: tuple[str, ...] = ("new\nline", "tab\t")

    def __init__(self, server: SftpServer, root: Path, source: Source) -> None:
        super().__init__(root, source)
        self._server = server

    def uri(self, path: str = "") -> StorageUri:
        return StorageUri("sftp", self._server.authority, f"{self.root.relative_to(self._server.root)}/{path}".rstrip("/"))


class TestSftp(SourceContract):
    @pytest.fixture
    def place(self, sftp: SftpServer) -> Iterator[Place]:
        root = sftp.root / secrets.token_hex(6)
        root.mkdir()
        with source_of(sftp) as source:
            yield SftpDirectory(sftp, root, source)


class TestSftpFaulted(FaultedContract, TestSftp):
    pass
