"""The head of an HTTP/1.1 message: writing requests and reading responses, strictly (RFC 9112)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar, overload

from modelcache.errors import BadConfig, ProtocolViolation

T = TypeVar("T")
MAX_HEAD_BYTES = 64 << 10
"""Of a response head; nginx and S3 stay under 8 KiB, a chain of proxies under twice that."""
MAX_SIZE_BYTES = (1 << 63) - 1
"""off_t of Linux: no file is larger."""
HEAD_END = b"\r\n\r\n"

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_FORBIDDEN_IN_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_FIELD = re.compile(r"\r\n([^:\r]+):[ \t]*([^\r]*)")
_FIELDS = re.compile(r"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*)*")
"""All header lines at once, each behind its line's end; `_header` says what is wrong with one."""
_NUMBER = re.compile(r"[0-9]{1,19}")
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,19})-([0-9]{1,19})|\*)/([0-9]{1,19}|\*)", re.IGNORECASE)


class Headers(Mapping[str, str]):
    """Headers of one response: looked up without regard to case; a repeated one reads as its values joined by `, `.

    Its repr shows names only, for `Location` and `Set-Cookie` hold secrets.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            name = name.lower()
            if name in self._values:
                self._values[name].append(value)
            else:
                self._values[name] = [value]

    def __getitem__(self, name: str) -> str:
        return ", ".join(self._values[name.lower()])

    @overload
    def get(self, name: str, default: None = None, /) -> str | None: ...
    @overload
    def get(self, name: str, default: str | T, /) -> str | T: ...
    def get(self, name: str, default: object = None, /) -> object:
        """As of every mapping, but without an exception for a header that isn't there: most that are looked for are not."""
        return self[name] if name.lower() in self._values else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def all(self, name: str) -> list[str]:
        """Every value of a repeated header, in order."""
        return list(self._values.get(name.lower(), ()))

    def __repr__(self) -> str:
        return f"Headers({', '.join(sorted(self._values))})"


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status and headers of one answer, with its framing checked.

    Attributes:
        length_bytes: `Content-Length`; None if there is none.
        chunked: the body comes in the chunked coding.
        keep_alive: the connection can carry another request once the body was read.
    """

    status: int
    headers: Headers
    length_bytes: int | None
    chunked: bool
    keep_alive: bool


def encode_request(method: str, resource: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """The bytes of a request without a body.

    Raises:
        BadConfig: something in it can't be sent: a CR, LF, NUL or other control character, or a name that is no token. The error
            names the header, never its value.
    """
    if not _TOKEN.fullmatch(method) or not re.fullmatch(r"[!-~]+", resource):
        raise BadConfig("the request line holds a character that can't be sent")
    lines = [f"{method} {resource} HTTP/1.1"]
    for name, value in headers:
        if not _TOKEN.fullmatch(name):
            raise BadConfig(f"not a header name: {name[:80]!a}")
        if _FORBIDDEN_IN_VALUE.search(value) or not value.isascii():
            raise BadConfig(f"the value of header `{name}` holds a control or non-ASCII character")
        lines.append(f"{name}: {value}")
    return "\r\n".join(lines).encode("ascii") + HEAD_END


def parse_response(data: bytes, *, address: str) -> ResponseHead:
    """Read a response head, `data` being everything in front of the empty line.

    Raises:
        ProtocolViolation: anything that RFC 9112 forbids a sender and that could hide where the body starts or ends: a folded
            line, a bare CR or LF, a space in front of a colon, two different lengths, a length beside a transfer coding.
    """
    text = data.decode("latin-1")
    status_line, *lines = text.split("\r\n")
    match = _STATUS_LINE.fullmatch(status_line)
    if match is None:
        raise ProtocolViolation("the answer is not HTTP/1.1", address=address, got=ascii(status_line[:60]))
    if _FIELDS.fullmatch(text, len(status_line)):
        headers = Headers((name, value.rstrip(" \t")) for name, value in _FIELD.findall(text, len(status_line)))
    else:
        headers = Headers(_header(line, address) for line in lines)
    codings = headers.get("transfer-encoding")
    length_bytes = _content_length(headers, address)
    if codings is not None and (codings.strip().lower() != "chunked" or length_bytes is not None):
        raise ProtocolViolation("the answer's framing is ambiguous", address=address, got=f"Transfer-Encoding: {codings[:60]!a}")
    options = [option.strip().lower() for option in headers.get("connection", "").split(",")]
    framed = length_bytes is not None or codings is not None
    keep_alive = framed and match.group(1) == "1" and "close" not in options
    return ResponseHead(int(match.group(2)), headers, length_bytes, codings is not None, keep_alive)


@dataclass(frozen=True, slots=True)
class ContentRange:
    """A `Content-Range`: bytes `start` to `stop` (excluded) of `total_bytes`.

    `start` and `stop` are None where no byte was sent (416), the total where the origin does not know it.
    """

    start: int | None
    stop: int | None
    total_bytes: int | None


def parse_content_range(headers: Mapping[str, str], *, address: str) -> ContentRange | None:
    """The `Content-Range` of an answer (RFC 9110 §14.4), None if it has none.

    Raises:
        ProtocolViolation: more than one, or one that makes no sense.
    """
    text = headers.get("content-range")
    if text is None:
        return None
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None:
        raise ProtocolViolation("the answer's Content-Range can't be read", address=address, got=ascii(text[:80]))
    first, last, total = match.groups()
    total_bytes = None if total == "*" else int(total)
    if first is None:
        return ContentRange(None, None, total_bytes)
    start, stop = int(first), int(last) + 1
    if stop <= start or (total_bytes is not None and stop > total_bytes):
        raise ProtocolViolation("the answer's Content-Range makes no sense", address=address, got=ascii(text[:80]))
    return ContentRange(start, stop, total_bytes)


def _header(line: str, address: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not _TOKEN.fullmatch(name) or _FORBIDDEN_IN_VALUE.search(value):
        raise ProtocolViolation("the answer holds a malformed header line", address=address, got=ascii(name[:40]))
    return name, value.strip(" \t")


def _content_length(headers: Headers, address: str) -> int | None:
    stated = headers.all("content-length")
    if len(stated) == 1 and _NUMBER.fullmatch(stated[0]) and int(stated[0]) <= MAX_SIZE_BYTES:
        return int(stated[0])
    values = {value.strip() for text in headers.all("content-length") for value in text.split(",")}
    if not values:
        return None
    value = values.pop()
    if values or not _NUMBER.fullmatch(value) or int(value) > MAX_SIZE_BYTES:
        raise ProtocolViolation(
            "the answer's Content-Length can't be read", address=address, got=ascii(headers.get("content-length", "")[:60])
        )
    return int(value)
