"""Sources that fsspec serves: what is refused, what is missing, what filesystems raise and state, and calls that hang."""

from __future__ import annotations

import errno
import ftplib
import json
import logging
import ssl
import threading
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import fsspec
import pytest
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from modelcache.abc.source import Listing
from modelcache.errors import (
    AccessDenied,
    BodyCut,
    Cancelled,
    InvalidUri,
    ModelCacheError,
    NotFound,
    OriginBusy,
    OriginStalled,
    OriginUnreachable,
    OriginUntrusted,
    ProtocolViolation,
    SourceChanged,
    UnknownScheme,
    UnsafePath,
)
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.any_fsspec import FsspecOptions, FsspecSource
from modelcache.sources.any_fsspec.refusals import Asked, error_of
from modelcache.testing.source_contract import read
from modelcache.transport import Timeouts
from modelcache.uri import parse_uri

DATA = bytes(range(256)) * 40_000
"""More than two blocks."""


class Shelf(MemoryFileSystem):  # type: ignore[misc]
    """fsspec's memory under a name of its own, which does as the test says."""

    protocol = "shelf"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    made: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    raises: Exception | None = None
    before_read: Any = None

    def __init__(self, **arguments: Any) -> None:
        Shelf.made.append(arguments)
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = MemoryFileSystem._strip_protocol(path.removeprefix("shelf://"))
        return stripped

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        found = fsspec.utils.infer_storage_options(path)
        return {name: found[name] for name in ("username", "password") if name in found}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().info(path)
        return found | (self.facts if found["type"] == "file" else {})

    def find(self, path: str, **how: Any) -> Any:
        return {name: info | self.facts for name, info in super().find(path, **how).items()}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if Shelf.before_read is not None:
            Shelf.before_read()
        if self.raises is not None:
            raise self.raises
        data: bytes = super().cat_file(path, start, end)
        return data


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> type[Shelf]:
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    for name, value in (("store", {}), ("pseudo_dirs", [""]), ("made", []), ("facts", {}), ("raises", None), ("before_read", None)):
        monkeypatch.setattr(Shelf, name, value)
    return Shelf


def source_of(text: str, options: FsspecOptions | None = None, *, stall_s: float = 20) -> FsspecSource:
    uri, secrets = parse_uri(text)
    return FsspecSource(uri, secrets, options or FsspecOptions(), Timeouts(20, stall_s))


def listed(source: FsspecSource, text: str = "shelf://m") -> Listing:
    return source.list(parse_uri(text)[0], Cancellation())


def put(path: str, data: bytes) -> None:
    Shelf(shelf=True).pipe_file(path, data)


# -- arguments and packages -----------------------------------------------------------------------------------------


def test_a_package_that_is_missed_only_when_connecting_is_named(shelf: type[Shelf], monkeypatch: pytest.MonkeyPatch) -> None:
    """As pyarrow by `hdfs`, whose class can be imported without."""

    def missing(self: Shelf, **_: Any) -> None:
        raise ModuleNotFoundError("No module named 'pyarrow'")

    monkeypatch.setattr(Shelf, "__init__", missing)
    with pytest.raises(UnknownScheme, match="the package that serves `shelf://` is not installed") as caught:
        listed(source_of("shelf://m"))
    assert not caught.value.retryable
    assert caught.value.hint is not None


def test_the_uris_user_and_the_settings_become_arguments_and_are_never_told(shelf: type[Shelf], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    put("/m/f", DATA)
    options = FsspecOptions({"shelf": {"account": "a", "secret_thing": "s3cr3t"}, "ftp": {"password": "other"}})
    shelf.made.clear()
    text = f"shelf://me:{quote('p@ss/word', safe='')}@m"
    uri, secrets = parse_uri(text)
    source = FsspecSource(uri, secrets, options, Timeouts())
    assert read(source, listed(source).files[0]) == DATA
    assert shelf.made == [{"account": "a", "secret_thing": "s3cr3t", "username": "me", "password": "p@ss/word"}]
    said = repr([source, source._home, options]) + str(source.origin) + caplog.text
    assert not [secret for secret in ("s3cr3t", "p@ss/word", "p%40ss") if secret in said]
    source.close()


def test_other_accounts_and_users_are_other_origins_and_other_secrets_are_not(shelf: type[Shelf]) -> None:
    def origin(text: str, **arguments: Any) -> str:
        return str(source_of(text, FsspecOptions({"shelf": arguments})).origin)

    bare = origin("shelf://m")
    assert bare == "shelf://m"
    kinds = {bare, origin("shelf://m", account="a"), origin("shelf://m", account="b"), origin("shelf://me:x@m"), origin("shelf://you:x@m")}
    assert len(kinds) == 5
    assert origin("shelf://m", account="a") == origin("shelf://m", account="a", key="k", client={"sas_token": "t"})
    assert origin("shelf://me:x@m") == origin("shelf://me:y@m")


def test_credentials_that_a_scheme_has_no_use_for_are_refused() -> None:
    with pytest.raises(InvalidUri, match="take no user or password"):
        source_of("memory://me:secret@m")
    with pytest.raises(InvalidUri, match="take no signing parameters") as caught:
        source_of("shelf://m/f?sig=0f0f") if "shelf" in fsspec.available_protocols() else source_of("memory://m/f?sig=0f0f")
    assert "MODELCACHE_FSSPEC_" in str(caught.value.hint)
    assert "0f0f" not in str(caught.value.as_dict())


# -- what filesystems raise -----------------------------------------------------------------------------------------


class Told(Exception):
    """An error of an HTTP client."""

    def __init__(self, status: int) -> None:
        super().__init__("https://user:secret@host/?sig=secret")
        self.status_code = status


class AuthenticationException(Exception):
    """As paramiko's."""


RAISED: list[tuple[Exception, type[ModelCacheError]]] = [
    (FileNotFoundError("secret"), SourceChanged),
    (OSError(errno.ENOENT, "secret"), SourceChanged),
    (PermissionError("secret"), AccessDenied),
    (AuthenticationException("secret"), AccessDenied),
    (Told(401), AccessDenied),
    (Told(403), AccessDenied),
    (Told(404), SourceChanged),
    (Told(429), OriginBusy),
    (Told(503), OriginBusy),
    (Told(400), ProtocolViolation),
    (TimeoutError("secret"), OriginStalled),
    (ConnectionRefusedError(errno.ECONNREFUSED, "secret"), OriginUnreachable),
    (OSError("secret"), OriginUnreachable),
    (EOFError("secret"), BodyCut),
    (ssl.SSLCertVerificationError("secret"), OriginUntrusted),
    (ftplib.error_temp("421 secret"), OriginBusy),
    (ftplib.error_perm("530 secret"), AccessDenied),
    (ftplib.error_perm("550 secret"), SourceChanged),
    (ftplib.error_perm("504 secret"), ProtocolViolation),
    (ftplib.error_proto("secret"), ProtocolViolation),
    (ZeroDivisionError("secret"), ProtocolViolation),
]


@pytest.mark.parametrize(("raised", "ours"), RAISED, ids=lambda value: getattr(value, "__name__", repr(value)))
def test_what_a_filesystem_raises_is_told_by_its_kind_alone(shelf: type[Shelf], raised: Exception, ours: type[ModelCacheError]) -> None:
    put("/m/f", DATA)
    source = source_of("shelf://m")
    [file] = listed(source).files
    shelf.raises = raised
    with pytest.raises(ours) as caught:
        read(source, file)
    assert caught.value.address == "shelf://m/f"
    assert caught.value.__context__ is None
    assert "secret" not in str(caught.value.as_dict())
    shelf.raises = None
    assert read(source, file) == DATA


def test_absence_before_a_listing_is_no_change() -> None:
    for raised in (FileNotFoundError(), Told(404), ftplib.error_perm("550 no")):
        assert isinstance(error_of(raised, Asked("shelf", "shelf://m")), NotFound)


# -- what filesystems state -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, -1, "5", True])
def test_a_file_without_a_size_is_refused(shelf: type[Shelf], size: object) -> None:
    put("/m/f", DATA)
    shelf.facts = {"size": size}
    with pytest.raises(ProtocolViolation, match="does not state the file's size"):
        listed(source_of("shelf://m"))


def test_a_name_that_the_filesystem_would_read_as_anothers_is_refused(shelf: type[Shelf], monkeypatch: pytest.MonkeyPatch) -> None:
    strip = Shelf._strip_protocol
    monkeypatch.setattr(Shelf, "_strip_protocol", classmethod(lambda cls, path: strip(path.partition("#")[0])))
    shelf.store.update({"/m/f": MemoryFile(None, "/m/f", b"f"), "/m/f#2": MemoryFile(None, "/m/f#2", b"f#2")})
    source = source_of("shelf://m")
    for text in ("shelf://m", "shelf://m/f#2#"):
        with pytest.raises(UnsafePath, match="something else") as caught:
            listed(source, text)
        assert (caught.value.expected, caught.value.got) == ("'/m/f#2'", "'/m/f'")
    [file] = listed(source, "shelf://m#exclude=*%232").files
    assert read(source, file) == b"f"


@pytest.mark.parametrize("others", [{}, {"/m/A": b"another"}])
def test_a_name_that_the_server_would_decode_is_refused(
    shelf: type[Shelf], monkeypatch: pytest.MonkeyPatch, others: dict[str, bytes]
) -> None:
    """As webdav4 asks: what is in the listing as `%41` is `A` to the server."""
    for name, data in (others | {"/m/%41": b"%41", "/m/f": b"f"}).items():
        put(name, data)
    info = Shelf.info
    monkeypatch.setattr(Shelf, "info", lambda self, path, **how: info(self, path.replace("%41", "A"), **how))
    with pytest.raises(UnsafePath, match="something else") as caught:
        listed(source_of("shelf://m"))
    assert caught.value.expected == "'/m/%41'"
    assert [file.path for file in listed(source_of("shelf://m"), "shelf://m#exclude=%2541&exclude=A").files] == ["f"]


def test_what_is_no_file_is_refused_unless_left_out(shelf: type[Shelf]) -> None:
    put("/m/f", DATA)
    shelf.facts = {"type": "other"}
    with pytest.raises(UnsafePath, match="no regular file"):
        listed(source_of("shelf://m"))
    with pytest.raises(NotFound, match="patterns"):
        listed(source_of("shelf://m"), "shelf://m#exclude=f")


def test_a_file_without_a_version_is_read_in_one_request_and_watched(shelf: type[Shelf]) -> None:
    put("/m/f", DATA)
    shelf.facts = {"mtime": datetime.now(UTC).replace(microsecond=0)}
    source = source_of("shelf://m")
    [file] = listed(source).files
    assert not file.resumable
    assert read(source, file) == DATA
    shelf.facts = {"mtime": datetime(2020, 1, 1, tzinfo=UTC)}
    with pytest.raises(SourceChanged):
        read(source, file)


def test_no_byte_of_a_block_that_came_while_the_file_changed_is_handed_out(shelf: type[Shelf]) -> None:
    put("/m/f", DATA)
    source = source_of("shelf://m")
    [file] = listed(source).files
    body = source.open(file, ByteRange(0, len(DATA)), Cancellation())
    got = bytearray()
    buffer = memoryview(bytearray(1 << 20))
    shelf.before_read = lambda: put("/m/f", DATA[::-1])

    def drain() -> None:
        while count := body.readinto(buffer):
            got.extend(buffer[:count])

    with pytest.raises(SourceChanged):
        drain()
    body.close()
    assert got == DATA[: len(got)]
    assert len(got) == 4 << 20  # the block that `open` had read before


def test_a_block_that_comes_short_is_a_cut(shelf: type[Shelf], monkeypatch: pytest.MonkeyPatch) -> None:
    put("/m/f", DATA)
    source = source_of("shelf://m")
    [file] = listed(source).files
    monkeypatch.setattr(Shelf, "cat_file", lambda self, path, start, end: DATA[start : end - 1])
    with pytest.raises(BodyCut):
        read(source, file)
    monkeypatch.setattr(Shelf, "cat_file", lambda self, path, start, end: DATA[start : end + 1])
    with pytest.raises(ProtocolViolation, match="more bytes"):
        read(source, file, ByteRange(0, 10))


# -- calls that hang ------------------------------------------------------------------------------------------------


def test_a_call_that_hangs_is_given_up_and_touches_nothing_later(shelf: type[Shelf], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelcache.sources.any_fsspec.source.SLOWEST_BYTES_PER_S", 1 << 40)
    put("/m/f", DATA)
    go_on, ended = threading.Event(), threading.Event()

    def hang() -> None:
        go_on.wait()
        ended.set()

    source = source_of("shelf://m", stall_s=0.2)
    [file] = listed(source).files
    shelf.before_read = hang
    with pytest.raises(OriginStalled, match=r"no answer for 0\.2"):
        source.open(file, ByteRange(0, 10), Cancellation())
    go_on.set()
    assert ended.wait(20)


def test_a_call_that_hangs_is_left_when_cancelled(shelf: type[Shelf]) -> None:
    put("/m/f", DATA)
    inside, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        inside.set()
        go_on.wait()

    source = source_of("shelf://m")
    [file] = listed(source).files
    shelf.before_read = hang
    cancel = Cancellation()

    def stop() -> None:
        inside.wait()
        cancel.cancel()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Cancelled):
        source.open(file, ByteRange(0, 10), cancel)
    thread.join()
    go_on.set()


def test_the_locator_and_the_listing_hold_no_secret(shelf: type[Shelf]) -> None:
    put("/m/f", DATA)
    source = source_of("shelf://me:hidden@m")
    found = listed(source, "shelf://m")
    assert "hidden" not in json.dumps([file.locator for file in found.files]) + repr(found) + str(found.origin)


# -- instances ------------------------------------------------------------------------------------------------------


def test_an_instance_serves_one_call_at_a_time_is_kept_and_goes_when_it_failed(shelf: type[Shelf]) -> None:
    put("/m/f", DATA)
    source = source_of("shelf://m")
    shelf.made.clear()
    [file] = listed(source).files
    assert read(source, file) == DATA
    assert read(source, file, ByteRange(5, 9)) == DATA[5:9]
    assert len(shelf.made) == 1
    bodies = [source.open(file, ByteRange(0, 10), Cancellation()) for _ in range(3)]
    assert len(shelf.made) == 3
    for body in bodies:
        body.close()
    shelf.raises = ConnectionResetError()
    with pytest.raises(OriginUnreachable):
        read(source, file)
    shelf.raises = None
    assert read(source, file) == DATA
    assert len(shelf.made) == 4  # the two that were idle went with it: their server is likely gone


def test_a_filesystem_that_is_asynchronous_inside_is_shared() -> None:
    made: list[object] = []
    wrapped: Any = AsyncFileSystemWrapper.wrap_class(MemoryFileSystem)

    class Asynchronous(wrapped):  # type: ignore[misc]
        def __init__(self, **arguments: Any) -> None:
            made.append(arguments)
            super().__init__(**arguments)

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            stripped: str = MemoryFileSystem._strip_protocol(path.removeprefix("shelf://"))
            return stripped

    fsspec.register_implementation("shelf", Asynchronous, clobber=True)
    memory = MemoryFileSystem()
    memory.pipe_file("/async-m/d/f", DATA)
    source = source_of("shelf://async-m")
    [file] = listed(source, "shelf://async-m").files
    assert file.path == "d/f"
    bodies = [source.open(file, ByteRange(at, at + 10), Cancellation()) for at in range(3)]
    for at, body in enumerate(bodies):
        buffer = memoryview(bytearray(10))
        assert body.readinto(buffer) == 10
        assert buffer == DATA[at : at + 10]
        body.close()
    assert read(source, file) == DATA
    assert len(made) == 1
    memory.rm("/async-m", recursive=True)
