"""Our verdict on a safetensors file beside the package's: the same, or stricter with a reason; the same tensors of what is accepted."""

from __future__ import annotations

import json
import struct
from typing import Any

import safetensors

from modelcache.errors import BadCheckpoint
from modelcache.loader.header import Header, header_bytes, parse_header

STRICTER = (
    "doesn't begin with `{`",
    "twice",
    "is not an object with",
    "an unknown field that is an object",
    "is an object, and no string",
    "-0 is no whole number",
)
"""Why a file may be refused that the package reads: the format forbids it, or two parsers may read it as two models."""


def file_of(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header: JSON of it, or these bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str, shape: Any, start: Any, stop: Any, **more: object) -> dict[str, object]:
    """A tensor's entry in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop], **more}


def ours(data: bytes) -> Header:
    """Raises BadCheckpoint."""
    size_bytes = header_bytes(data[:8], len(data), "m.safetensors")
    return parse_header(data[:size_bytes], len(data), "m.safetensors")


def packages(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """Dtype, shape and bytes by name; None: it refuses the file."""
    try:
        deserialize: Any = safetensors.deserialize  # has no types
        found = deserialize(data)
    except safetensors.SafetensorError:
        return None
    return {name: (each["dtype"], tuple(each["shape"]), bytes(each["data"])) for name, each in found}


def expect_like_the_package(data: bytes) -> bool:
    """Whether the file is one. Raises AssertionError: the verdicts, or the tensors, differ without a reason."""
    theirs = packages(data)
    header, refusal = _tried(data)
    if header is None:
        assert theirs is None or any(reason in refusal for reason in STRICTER), refusal
        return False
    assert theirs is not None, "accepted, and the package refuses it"
    mine = {each.name: (each.dtype.label, each.shape, data[each.span.start : each.span.stop]) for each in header.tensors}
    assert mine == theirs
    return True


def _tried(data: bytes) -> tuple[Header | None, str]:
    try:
        return ours(data), ""
    except BadCheckpoint as error:
        return None, error.message
