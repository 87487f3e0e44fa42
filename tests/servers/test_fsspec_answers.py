"""Sources that fsspec serves: what filesystems raise and state, and calls that hang."""

from __future__ import annotations

import errno
import ftplib
import ssl
import threading
from datetime import UTC, datetime

import pytest
from fsspec.implementations.memory import MemoryFile

from modelcache.errors import (
    AccessDenied,
    BodyCut,
    Cancelled,
    ModelCacheError,
    NotFound,
    OriginBusy,
    OriginStalled,
    OriginUnreachable,
    OriginUntrusted,
    ProtocolViolation,
    SourceChanged,
    UnsafePath,
)
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.any_fsspec.refusals import Asked, error_of
from modelcache.testing.source_contract import read
from tests.servers.shelf import DATA, Shelf, listed, put, source_of

# -- what filesystems raise -------------------------------------------------------------------------------------------


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


# -- what filesystems state -------------------------------------------------------------------------------------------


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


# -- calls that hang --------------------------------------------------------------------------------------------------


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
