"""Answers that are not exactly the asked-for bytes of the listed version: nothing of them is handed out."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace

import pytest

from modelcache.errors import BodyCut, ModelCacheError, OriginUnreachable, ProtocolViolation, SourceChanged
from modelcache.ranges import ByteRange
from modelcache.testing import faults
from modelcache.testing.fault_server import Call, Fault, FaultServer
from tests.faults.reader import DATA, PATH, Reader, fails

SPAN = ByteRange(1_000, 201_000)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(faults.ignored_range, ProtocolViolation, id="200 to a Range"),
        pytest.param(faults.other_range(1), ProtocolViolation, id="other range"),
        pytest.param(faults.other_range(-1000), ProtocolViolation, id="range from the start"),
        pytest.param(faults.with_headers({"Content-Range": None}), ProtocolViolation, id="206 without Content-Range"),
        pytest.param(faults.with_headers({"Content-Range": "bytes 1000-200999/*"}), ProtocolViolation, id="size unknown"),
        pytest.param(faults.with_headers({"Content-Range": "bytes 1000-200999/300001"}), SourceChanged, id="other size"),
        pytest.param(faults.with_headers({"Content-Range": "bytes 1000-200999/200000"}), ProtocolViolation, id="size under the range"),
        pytest.param(faults.with_headers({"Content-Range": "bytes=1000-200999/300000"}), ProtocolViolation, id="malformed Content-Range"),
        pytest.param(faults.with_headers({"Content-Range": "octets 1000-200999/300000"}), ProtocolViolation, id="other unit"),
        pytest.param(faults.gzipped, ProtocolViolation, id="gzip"),
        pytest.param(faults.with_headers({"Content-Encoding": "gzip"}), ProtocolViolation, id="gzip of the right size"),
        pytest.param(faults.with_headers({"Content-Encoding": "identity, br"}), ProtocolViolation, id="two codings"),
        pytest.param(
            faults.with_headers({"Content-Length": "200001"}, body=DATA[1_000:201_001]), ProtocolViolation, id="longer than its range"
        ),
        pytest.param(
            faults.with_headers({"Content-Length": "199999"}, body=DATA[1_000:200_999]), ProtocolViolation, id="shorter than its range"
        ),
        pytest.param(faults.with_headers({"Content-Length": "200000, 7"}), ProtocolViolation, id="two lengths"),
        pytest.param(faults.with_headers({"Content-Length": "+200000"}), ProtocolViolation, id="signed length"),
        pytest.param(faults.with_headers({"Content-Length": "9" * 25}), ProtocolViolation, id="absurd length"),
        pytest.param(faults.with_headers({"Transfer-Encoding": "chunked"}, body=b"0\r\n\r\n"), ProtocolViolation, id="chunked range"),
        pytest.param(
            faults.with_headers({"Transfer-Encoding": "chunked", "Content-Length": "200000"}), ProtocolViolation, id="chunked with a length"
        ),
        pytest.param(faults.with_headers({"ETag": '"v2"'}), SourceChanged, id="other ETag"),
        pytest.param(faults.with_headers({"ETag": None}), SourceChanged, id="no ETag any more"),
        pytest.param(faults.with_headers({"ETag": 'W/"v1"'}), SourceChanged, id="weak ETag"),
        pytest.param(faults.with_headers({"X": "a\r\n folded"}), ProtocolViolation, id="folded header"),
        pytest.param(faults.with_headers({"X : a": "b"}), ProtocolViolation, id="space before the colon"),
        pytest.param(faults.with_headers({"X": "a\x00b"}), ProtocolViolation, id="NUL in a header"),
        pytest.param(faults.with_headers({"X": "a\rb"}), ProtocolViolation, id="bare CR in a header"),
        pytest.param(faults.with_headers({"X": "a" * 70_000}), ProtocolViolation, id="huge head"),
        pytest.param(faults.raw(b"X: y\r\n" * 20_000), ProtocolViolation, id="endless head"),
        pytest.param(faults.raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), ProtocolViolation, id="not HTTP"),
        pytest.param(faults.raw(b"HTTP/2 200\r\n\r\n"), ProtocolViolation, id="not HTTP/1"),
        pytest.param(faults.raw(b"HTTP/1.1 101 x\r\nUpgrade: y\r\n\r\n"), ProtocolViolation, id="switched protocol"),
        pytest.param(faults.raw(b"HTTP/1.1 100 x\r\n\r\n" * 17), ProtocolViolation, id="endless interim answers"),
        pytest.param(faults.raw(b"HTTP/1.1 206 x\r\nContent-Le"), BodyCut, id="head cut"),
        pytest.param(faults.raw(b""), OriginUnreachable, id="no answer"),
    ],
)
def test_nothing_of_a_wrong_answer_is_handed_out(server: FaultServer, reader: Reader, fault: Fault, kind: type[ModelCacheError]) -> None:
    file = reader.list()
    server.fail(PATH, fault)
    received = bytearray()
    with fails(kind):
        reader.read(file, SPAN, into=received)
    assert received == b""
    server.fail(PATH, fault, times=0)
    assert reader.read(file, SPAN) == DATA[SPAN.start : SPAN.stop]


@pytest.mark.parametrize("sent_bytes", [0, 1, 64 << 10, 199_999])
def test_a_body_cut_short_is_handed_out_up_to_the_cut(server: FaultServer, reader: Reader, sent_bytes: int) -> None:
    file = reader.list()
    server.fail(PATH, faults.cut_short(sent_bytes))
    received = bytearray()
    with fails(BodyCut) as caught:
        reader.read(file, SPAN, into=received)
    assert received == DATA[SPAN.start : SPAN.start + sent_bytes]
    assert caught.value.retryable
    assert (caught.value.expected, caught.value.got) == ("200000 bytes", f"{sent_bytes} bytes")


def test_a_reset_body_hands_out_no_wrong_byte(server: FaultServer, reader: Reader) -> None:
    file = reader.list()
    server.fail(PATH, faults.reset(100_000))
    received = bytearray()
    with fails(BodyCut):
        reader.read(file, SPAN, into=received)
    assert DATA[SPAN.start : SPAN.stop].startswith(received)
    assert len(received) <= 100_000


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("extra", [b"x", DATA[SPAN.stop : SPAN.stop + 50_000], b"HTTP/1.1 206 x\r\nContent-Length: 5\r\n\r\nwrong"])
def test_bytes_beyond_the_promised_ones_are_never_handed_out(server: FaultServer, reader: Reader, extra: bytes, close: bool) -> None:
    file = reader.list()
    sent = threading.Event()
    server.fail(PATH, faults.overlong(extra, close=close, sent=sent), times=1)
    assert reader.read_but_the_end(file, SPAN, before_end=sent.wait, ends_with=ProtocolViolation) == DATA[SPAN.start : SPAN.stop]
    assert reader.read(file, SPAN) == DATA[SPAN.start : SPAN.stop]


def test_late_bytes_in_front_of_an_announced_close_are_awaited(
    server: FaultServer, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelcache.transport.body.CLOSE_WAIT_S", 30.0)
    at_end = threading.Event()

    def late(call: Call) -> None:
        reply = call.proper
        call.send(replace(reply, headers={**reply.headers, "Connection": "close"}).head() + reply.body)
        at_end.wait(30)
        call.ended.wait(0.05)  # the client is let into its last read
        call.send(b"x")
        call.hang_up()

    file = reader.list()
    server.fail(PATH, late)
    assert reader.read_but_the_end(file, SPAN, before_end=at_end.set, ends_with=ProtocolViolation) == DATA[SPAN.start : SPAN.stop]


def test_bytes_beyond_a_body_that_came_along_with_the_head_are_a_violation(server: FaultServer, reader: Reader) -> None:
    file = reader.list()
    server.fail(PATH, faults.overlong(b"more", close=True, sent=threading.Event()))
    received = bytearray()
    with fails(ProtocolViolation) as caught:
        reader.read(file, ByteRange(0, 10), into=received)
    assert received == DATA[:10]
    assert caught.value.expected == "10 bytes"


def test_a_file_without_ranges_that_changes_its_length_has_changed(server: FaultServer, reader: Reader) -> None:
    server.fail(PATH, faults.ignored_range)
    file = reader.list()
    assert (file.ranged, file.resumable, file.size_bytes) == (False, False, len(DATA))
    assert reader.read(file) == DATA
    server.put(PATH, DATA + b"more", etag='"v1"')
    with fails(SourceChanged):
        reader.read(file)


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        pytest.param(faults.gzipped, "encoded", id="gzip"),
        pytest.param(faults.raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nendless"), "size", id="200 without length"),
        pytest.param(faults.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), "size", id="200 in chunks"),
        pytest.param(
            faults.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n<a>\r\n0\r\n\r\n"),
            "web page",
            id="page in chunks",
        ),
        pytest.param(faults.with_headers({"Content-Range": "bytes 0-0/*"}), "size", id="206 without size"),
        pytest.param(faults.with_headers({"Content-Range": "bytes 1-1/300000"}), "range", id="another byte"),
        pytest.param(faults.with_headers({"Content-Range": None}), "range", id="no Content-Range"),
        pytest.param(faults.status(416), "empty", id="416 without size"),
        pytest.param(faults.status(416, {"Content-Range": "bytes */5"}), "empty", id="416 of a file that has bytes"),
    ],
)
def test_a_listing_that_states_no_size_is_refused(server: FaultServer, reader: Reader, fault: Fault, part: str) -> None:
    server.fail(PATH, fault)
    with fails(ProtocolViolation) as caught:
        reader.list()
    assert part in caught.value.message


def test_a_web_page_is_no_file_unless_its_name_or_a_digest_says_so(server: FaultServer, reader: Reader) -> None:
    """Of a directory, to sign in, or about a model: it comes with 200 and a size."""
    page = b"<html>sign in</html>"
    for path in ("/model", "/model.html"):
        server.put(path, page)
        server.fail(path, faults.with_headers({"Content-Type": "text/html; charset=utf-8"}))

    def listed(uri: str) -> int:
        return replace(reader, uri_text=server.endpoint + uri).list().size_bytes

    with fails(ProtocolViolation) as caught:
        listed("/model")
    assert ("web page" in caught.value.message, caught.value.got, caught.value.retryable) == (True, "text/html", False)
    assert listed("/model.html") == listed(f"/model#sha256={hashlib.sha256(page).hexdigest()}") == len(page)


def test_an_empty_file_is_listed_whether_ranges_are_served_or_not(server: FaultServer, reader: Reader) -> None:
    server.put(PATH, b"")
    assert (reader.list().size_bytes, reader.list().ranged) == (0, True)
    server.fail(PATH, faults.ignored_range)
    assert (reader.list().size_bytes, reader.list().ranged) == (0, False)
