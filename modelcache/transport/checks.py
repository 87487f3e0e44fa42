"""Whether an answer is what was asked for: this version, these bytes, unencoded."""

from __future__ import annotations

from modelcache.abc.source import RemoteFile
from modelcache.errors import ProtocolViolation, SourceChanged
from modelcache.ranges import ByteRange
from modelcache.transport.exchange import Answer
from modelcache.transport.head import ContentRange, parse_content_range
from modelcache.transport.signer import Precondition


def check_version(answer: Answer, precondition: Precondition, address: str) -> None:
    """Raises SourceChanged if the answer states another version than the precondition's, or none any more."""
    for name, expected in precondition.echoes.items():
        got = answer.head.headers.get(name)
        if got != expected:
            raise SourceChanged(f"the object's {name} is another than listed", address=address, expected=expected, got=got)


def check_framing(answer: Answer, file: RemoteFile, span: ByteRange, address: str) -> None:
    """
    Raises:
        ProtocolViolation: encoded, or not exactly the bytes that were asked for.
        SourceChanged: the file has another size now.
    """
    coding = answer.head.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise ProtocolViolation("the body is encoded, and we asked for it as it is", address=address, expected="identity", got=coding[:40])
    if file.ranged:
        _check_partial(answer, file, span, address)
    elif answer.head.status != 200:
        raise ProtocolViolation("a part in answer to a request for the whole", address=address, expected="200", got=str(answer.head.status))
    length_bytes = answer.head.length_bytes
    if length_bytes is None:
        raise ProtocolViolation("the answer does not state its length", address=address, expected=f"{span.size_bytes} bytes")
    if length_bytes != span.size_bytes:
        kind = ProtocolViolation if file.ranged else SourceChanged
        raise kind("the body's length is another", address=address, expected=f"{span.size_bytes} bytes", got=f"{length_bytes} bytes")


def _check_partial(answer: Answer, file: RemoteFile, span: ByteRange, address: str) -> None:
    if answer.head.status != 206:
        hint = "the origin, or a proxy in front of it, ignored the Range"
        raise ProtocolViolation("the whole file in answer to a range", address=address, expected="206", got="200", hint=hint)
    stated = parse_content_range(answer.head.headers, address=address)
    if stated is None:
        raise ProtocolViolation("a 206 without Content-Range", address=address, expected=str(span))
    if (stated.start, stated.stop) != (span.start, span.stop):
        raise ProtocolViolation("another range than the asked one", address=address, expected=str(span), got=_shown(stated))
    if stated.total_bytes is None:
        raise ProtocolViolation("the answer does not state the file's size", address=address, expected=f"{file.size_bytes} bytes")
    if stated.total_bytes != file.size_bytes:
        raise SourceChanged(
            "the file's size is another than listed",
            address=address,
            expected=f"{file.size_bytes} bytes",
            got=f"{stated.total_bytes} bytes",
        )


def _shown(stated: ContentRange) -> str:
    return "no range" if stated.start is None else f"[{stated.start}, {stated.stop})"
