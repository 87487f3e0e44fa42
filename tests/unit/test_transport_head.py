"""Heads of messages: what is written can be read, what is ambiguous is refused, and any bytes give a head or a violation."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelcache.errors import BadConfig, ProtocolViolation
from modelcache.transport.head import ContentRange, Headers, encode_request, parse_content_range, parse_response

TOKENS = st.text("abcXYZ0189!#$%&'*+-.^_`|~", min_size=1, max_size=20)
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)
ANYTHING = st.text(st.characters(max_codepoint=300), max_size=40)


@given(TOKENS, st.lists(st.tuples(TOKENS, VALUES), max_size=8))
def test_a_request_says_what_was_asked_and_no_more(method: str, headers: list[tuple[str, str]]) -> None:
    head, empty, rest = encode_request(method, "/a?b", headers).decode().partition("\r\n\r\n")
    assert (empty, rest) == ("\r\n\r\n", "")
    assert head.split("\r\n") == [f"{method} /a?b HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]


@given(method=ANYTHING, resource=ANYTHING, name=ANYTHING, value=ANYTHING)
@example("GET", "/ HTTP/1.1\r\nX: y", "a", "b")
@example("GET", "/", "a", "b\r\nAuthorization: x")
@example("GET", "/", "a\r\nb", "c")
@example("GET", "/", "a", "b\x00")
@example("GET", "/", "a", "b\n")
def test_nothing_can_be_smuggled_into_a_request(method: str, resource: str, name: str, value: str) -> None:
    try:
        data = encode_request(method, resource, [(name, value)])
    except BadConfig:
        return
    assert data.count(b"\r") == data.count(b"\n") == 3
    assert b"\x00" not in data


def test_a_header_that_is_refused_is_named_without_its_value() -> None:
    with pytest.raises(BadConfig) as caught:
        encode_request("GET", "/", [("Authorization", "Bearer s3cret\r\n")])
    assert "Authorization" in str(caught.value)
    assert "s3cret" not in f"{caught.value} {caught.value.as_dict()}"


def head_of(*lines: str) -> bytes:
    return "\r\n".join(lines).encode("latin-1")


def test_a_head_is_read() -> None:
    head = parse_response(head_of("HTTP/1.1 206 Partial Content", 'ETag: "a"', "X-Y:  b c ", "x-y: d", "Content-Length: 5, 5"), address="x")
    assert (head.status, head.length_bytes, head.chunked, head.keep_alive) == (206, 5, False, True)
    assert head.headers["etag"] == '"a"'
    assert head.headers["X-y"] == "b c, d"
    assert head.headers.all("x-Y") == ["b c", "d"]
    assert "b c" not in repr(head.headers)


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (["HTTP/1.1 200", "Content-Length: 1"], True),
        (["HTTP/1.1 200 ", "Transfer-Encoding: Chunked"], True),
        (["HTTP/1.1 200 x"], False),
        (["HTTP/1.1 200 x", "Content-Length: 1", "Connection: x, Close"], False),
        (["HTTP/1.0 200 x", "Content-Length: 1"], False),
    ],
)
def test_a_connection_is_kept_only_where_the_end_of_the_body_is_told(lines: list[str], kept: bool) -> None:
    assert parse_response(head_of(*lines), address="x").keep_alive is kept


@pytest.mark.parametrize(
    "lines",
    [
        ["HTTP/1.1 2000 x"],
        ["HTTP/1.1 600 x"],
        ["HTTP/1.1  200 x"],
        ["HTTP/2 200 x"],
        ["HTTP/1.1 200 x\x00"],
        ["ICY 200 OK"],
        [""],
        ["HTTP/1.1 200 x", "no colon"],
        ["HTTP/1.1 200 x", ": no name"],
        ["HTTP/1.1 200 x", "a b: c"],
        ["HTTP/1.1 200 x", "a: b", " folded"],
        ["HTTP/1.1 200 x", "a: b", "\tfolded"],
        ["HTTP/1.1 200 x", "a: b\nc: d"],
        ["HTTP/1.1 200 x", "Content-Length: 5", "Content-Length: 6"],
        ["HTTP/1.1 200 x", "Content-Length: 5, 6"],
        ["HTTP/1.1 200 x", "Content-Length: "],
        ["HTTP/1.1 200 x", "Content-Length: 0x5"],
        ["HTTP/1.1 200 x", "Content-Length: -5"],
        ["HTTP/1.1 200 x", "Content-Length: 5_0"],
        ["HTTP/1.1 200 x", "Content-Length: \xb2"],
        ["HTTP/1.1 200 x", "Content-Length: 9223372036854775808"],
        ["HTTP/1.1 200 x", "Transfer-Encoding: gzip, chunked"],
        ["HTTP/1.1 200 x", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["HTTP/1.1 200 x", "Transfer-Encoding: chunked", "Content-Length: 5"],
    ],
)
def test_an_ambiguous_head_is_refused(lines: list[str]) -> None:
    with pytest.raises(ProtocolViolation):
        parse_response(head_of(*lines), address="x")


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=200).map(lambda data: b"HTTP/1.1 200 x\r\n" + data)))
def test_any_bytes_are_a_head_or_a_violation(data: bytes) -> None:
    try:
        head = parse_response(data, address="x")
    except ProtocolViolation:
        return
    assert 100 <= head.status < 600
    assert not (head.chunked and head.length_bytes is not None)


@given(start=st.integers(0, 2**62), size=st.integers(1, 2**20), beyond=st.integers(0, 2**20))
def test_a_content_range_counts_the_last_byte_in(start: int, size: int, beyond: int) -> None:
    stop, total = start + size, start + size + beyond
    headers = Headers([("Content-Range", f"bytes {start}-{stop - 1}/{total}")])
    assert parse_content_range(headers, address="x") == ContentRange(start, stop, total)


@pytest.mark.parametrize(
    "text", ["", "bytes", "bytes 5-4/9", "bytes 0-9/9", "bytes 1-2", "bytes 1-2/3, bytes 4-5/6", "bytes -1/3", "bytes 0-0/0"]
)
def test_a_content_range_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ProtocolViolation):
        parse_content_range(Headers([("content-range", text)]), address="x")


def test_a_content_range_without_a_part_or_a_total() -> None:
    assert parse_content_range(Headers([]), address="x") is None
    assert parse_content_range(Headers([("content-range", "bytes */7")]), address="x") == ContentRange(None, None, 7)
    assert parse_content_range(Headers([("content-range", "bytes 0-0/*")]), address="x") == ContentRange(0, 1, None)
