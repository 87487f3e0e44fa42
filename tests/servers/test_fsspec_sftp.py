"""SFTP through fsspec and paramiko, against asyncssh: the contract of every source, a password, a file that links to another."""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from modelcache.abc.source import Source
from modelcache.errors import AccessDenied, BadConfig, OriginUnreachable, OriginUntrusted
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
def source_of(server: SftpServer, *, password: str = "", authority: str = "", **more: str) -> Iterator[FsspecSource]:
    told = UriSecrets(f"{server.user}:{quote(password or server.password, safe='')}")
    options = FsspecOptions({"sftp": more or {"known_hosts": str(server.known_hosts)}})
    source = FsspecSource(StorageUri("sftp", authority or server.authority, ""), told, options, Timeouts())
    try:
        yield source
    finally:
        source.close()


def test_who_is_refused_and_where_nobody_is(sftp: SftpServer) -> None:
    uri = StorageUri("sftp", sftp.authority, "")
    with source_of(sftp, password="wr0ng") as source, pytest.raises(AccessDenied) as denied:
        source.list(uri, Cancellation())
    assert "wr0ng" not in str(denied.value.as_dict())
    with source_of(sftp, authority="127.0.0.1:1") as source, pytest.raises(OriginUnreachable):
        source.list(StorageUri("sftp", "127.0.0.1:1", ""), Cancellation())


def test_a_host_key_has_to_be_the_known_one(sftp: SftpServer, tmp_path: Path) -> None:
    uri = StorageUri("sftp", sftp.authority, "known")
    (sftp.root / "known").mkdir()
    (sftp.root / "known" / "f").write_bytes(b"x")
    known = sftp.known_hosts.read_text()
    name, kind, key = known.split()
    body = bytearray(b64decode(key))
    body[-1] ^= 1
    for text, why in (("", "not known"), (f"{name} {kind} {b64encode(body).decode()}\n", "another than the known")):
        (tmp_path / "hosts").write_text(text)
        with source_of(sftp, known_hosts=str(tmp_path / "hosts")) as source, pytest.raises(OriginUntrusted, match=why) as told:
            source.list(uri, Cancellation())
        assert "ssh-keyscan" in str(told.value.hint)
        assert sftp.password not in str(told.value.as_dict())
    with source_of(sftp, known_hosts=str(tmp_path / "absent")) as source, pytest.raises(BadConfig, match="known hosts"):
        source.list(uri, Cancellation())
    with source_of(sftp, host_key_policy="auto_add") as source:
        assert [file.path for file in source.list(uri, Cancellation()).files] == ["f"]


def test_without_a_file_the_user_s_known_hosts_count(sftp: SftpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    source = FsspecSource(
        StorageUri("sftp", sftp.authority, ""), UriSecrets(f"{sftp.user}:{quote(sftp.password, safe='')}"), FsspecOptions(), Timeouts()
    )
    (sftp.root / "home").mkdir()
    (sftp.root / "home" / "f").write_bytes(b"x")
    uri = StorageUri("sftp", sftp.authority, "home")
    with pytest.raises(OriginUntrusted):
        source.list(uri, Cancellation())
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "known_hosts").write_text(sftp.known_hosts.read_text())
    assert [file.path for file in source.list(uri, Cancellation()).files] == ["f"]
    source.close()


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
