"""The header of a safetensors file: which tensor lies where. Pure; as strict as the `safetensors` package, or stricter with a reason.

Format: safetensors README ("Format") and its Rust implementation, 0.8: 8 bytes, little-endian, the length of the JSON; the JSON; the
tensors' bytes, without gaps. `data_offsets` count from the end of the JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from modelcache.errors import BadCheckpoint
from modelcache.loader import strict_json
from modelcache.ranges import ByteRange

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit (safetensors, `MAX_HEADER_SIZE`)."""
MAX_NUMBER = 2**64 - 1
_OTHERS = {
    b"version ": "what Git LFS puts in a file's place: it was uploaded without its bytes",
    b"<": "a web page",
    b"PK\x03\x04": "a zip, such as torch.save writes",
    b"\x80\x02": "a pickle, such as torch.save wrote",
    b"GGUF": "GGUF",
}
"""What files of weights often are instead, by how they begin; read as a length, each is beyond the limit."""
METADATA = "__metadata__"
FIELDS = ("dtype", "shape", "data_offsets")


class Dtype(Enum):
    """What a tensor's elements are: the format's name, and bits per element."""

    BOOL = ("BOOL", 8)
    F4 = ("F4", 4)
    F6_E2M3 = ("F6_E2M3", 6)
    F6_E3M2 = ("F6_E3M2", 6)
    U8 = ("U8", 8)
    I8 = ("I8", 8)
    F8_E5M2 = ("F8_E5M2", 8)
    F8_E4M3 = ("F8_E4M3", 8)
    F8_E8M0 = ("F8_E8M0", 8)
    F8_E4M3FNUZ = ("F8_E4M3FNUZ", 8)
    F8_E5M2FNUZ = ("F8_E5M2FNUZ", 8)
    I16 = ("I16", 16)
    U16 = ("U16", 16)
    F16 = ("F16", 16)
    BF16 = ("BF16", 16)
    I32 = ("I32", 32)
    U32 = ("U32", 32)
    F32 = ("F32", 32)
    C64 = ("C64", 64)
    F64 = ("F64", 64)
    I64 = ("I64", 64)
    U64 = ("U64", 64)

    def __init__(self, label: str, bits: int) -> None:
        self.label = label
        self.bits = bits


_DTYPES: Mapping[str, Dtype] = {each.label: each for each in Dtype}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file.

    Attributes:
        span: of its bytes in the file.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    span: ByteRange


@dataclass(frozen=True, slots=True)
class Header:
    """All tensors of a file, in file order.

    Attributes:
        size_bytes: of the length and the JSON: where the tensors' bytes begin.
        file_bytes: of the whole file, as the header has it.
        metadata: the file's own strings (`__metadata__`).
    """

    tensors: tuple[TensorEntry, ...] = field(repr=False)
    size_bytes: int
    file_bytes: int
    metadata: Mapping[str, str] = field(repr=False)


def header_bytes(first: bytes, file_bytes: int, address: str) -> int:
    """How long length and JSON are together, from the first 8 bytes of a file of `file_bytes`.

    Raises:
        BadCheckpoint: no file can begin so.
    """
    if len(first) < LENGTH_BYTES:
        raise BadCheckpoint("the file is too short for a safetensors header", address=address, expected="8 bytes", got=str(len(first)))
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        other = next((what for begin, what in _OTHERS.items() if first.startswith(begin)), None)
        if other is not None:
            raise BadCheckpoint("the file is no safetensors file", address=address, expected="a header's length", got=other)
        raise BadCheckpoint("the header is longer than the format allows", address=address, expected=str(MAX_HEADER_BYTES), got=str(length))
    if length < 2:
        raise BadCheckpoint("the header is too short to be JSON", address=address, expected="2 bytes or more", got=str(length))
    if LENGTH_BYTES + length > file_bytes:
        raise BadCheckpoint(
            "the header reaches beyond the file's end", address=address, expected=str(LENGTH_BYTES + length), got=str(file_bytes)
        )
    return LENGTH_BYTES + length


def parse_header(data: bytes, file_bytes: int, address: str) -> Header:
    """The header of a file, from its first `header_bytes` bytes.

    Args:
        file_bytes: of the whole file: the tensors must cover it exactly.

    Raises:
        BadCheckpoint: it is none; the message says what is wrong with which tensor.
    """
    try:
        return _Parser(file_bytes).header(data)
    except _Wrong as wrong:
        raise BadCheckpoint(
            f"the safetensors header is not one: {wrong}", address=address, expected=wrong.expected, got=wrong.got
        ) from None


class _Wrong(Exception):
    def __init__(self, message: str, *, expected: object = None, got: object = None) -> None:
        super().__init__(message)
        self.expected = None if expected is None else str(expected)
        self.got = None if got is None else str(got)


class _Parser:
    def __init__(self, file_bytes: int) -> None:
        self._file_bytes = file_bytes

    def header(self, data: bytes) -> Header:
        text = data[LENGTH_BYTES:]
        if not text.startswith(b"{"):
            raise _Wrong("its JSON doesn't begin with `{`, as the format says")
        fields = _json_object(text)
        metadata = _metadata(fields.pop(METADATA, None))
        entries = sorted((_entry(name, value, len(data)) for name, value in fields.items()), key=_place)
        self._check_cover(entries, len(data))
        return Header(tuple(entries), len(data), self._file_bytes, metadata)

    def _check_cover(self, entries: Sequence[TensorEntry], start: int) -> None:
        at = start
        for entry in entries:
            if entry.span.start != at:
                what = "overlaps the one before it" if entry.span.start < at else "leaves a gap before it"
                raise _Wrong(f"tensor {_shown(entry.name)} {what}", expected=at - start, got=entry.span.start - start)
            at = entry.span.stop
        if at != self._file_bytes:
            raise _Wrong("the tensors don't end where the file does", expected=at, got=self._file_bytes)


def _place(entry: TensorEntry) -> tuple[int, int]:
    return entry.span.start, entry.span.stop


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        value = strict_json.loads(text)
    except ValueError as error:
        raise _Wrong(f"its JSON is not one ({error})") from None
    assert isinstance(value, dict)  # it begins with `{`
    return value


def _metadata(value: Any) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise _Wrong("its `__metadata__` is not an object of strings")
    for text in (*value, *value.values()):
        _check_text(text)
    return value


def _entry(name: str, value: Any, header_size_bytes: int) -> TensorEntry:
    _check_text(name)
    if not isinstance(value, dict) or any(each not in value for each in FIELDS):
        raise _Wrong(f"tensor {_shown(name)} is not an object with {', '.join(FIELDS)}")
    for field_name, each in value.items():
        _check_text(field_name)
        if field_name not in FIELDS and isinstance(each, (dict, list)):  # of any depth, which the package bounds and we don't measure
            raise _Wrong(f"tensor {_shown(name)} has an unknown field that is an object or a list", got=_cut(field_name))
        if isinstance(each, str):
            _check_text(each)
    if isinstance(value["dtype"], dict):  # {"F32": null}, as the package's parser takes an enumeration
        raise _Wrong(f"the dtype of tensor {_shown(name)} is an object, and no string")
    dtype = _DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise _Wrong(f"tensor {_shown(name)} is of a dtype that is not known here", got=_cut(value["dtype"]))
    shape, offsets = _numbers(value["shape"]), _numbers(value["data_offsets"])
    if shape is None or offsets is None or len(offsets) != 2:
        raise _Wrong(f"shape or data_offsets of tensor {_shown(name)} are not whole numbers from 0 to 2⁶⁴-1")
    start, stop = offsets
    if stop < start:
        raise _Wrong(f"tensor {_shown(name)} ends before it begins", expected=f"{start} or more", got=stop)
    expected_bytes = _size_bytes(name, dtype, shape)
    if stop - start != expected_bytes:
        raise _Wrong(f"shape and dtype of tensor {_shown(name)} don't make its bytes", expected=expected_bytes, got=stop - start)
    return TensorEntry(name, dtype, shape, ByteRange(header_size_bytes + start, header_size_bytes + stop))


def _size_bytes(name: str, dtype: Dtype, shape: Sequence[int]) -> int:
    """Raises where the package's 64-bit arithmetic overflows, even if a later dimension is 0."""
    bits = 1
    for each in (*shape, dtype.bits):
        bits *= each
        if bits > MAX_NUMBER:
            raise _Wrong(f"the size of tensor {_shown(name)} is beyond 64 bits")
    if bits % 8:
        raise _Wrong(f"tensor {_shown(name)} ends within a byte", got=f"{bits} bits")
    return bits // 8


def _numbers(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(each) is int and 0 <= each <= MAX_NUMBER for each in value):
        return None
    return tuple(value)


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _Wrong("a string in it holds half of a surrogate pair") from None


def _shown(name: str) -> str:
    return f"`{_cut(name)}`"


def _cut(value: object, most: int = 100) -> str:
    text = value if isinstance(value, str) else type(value).__name__
    text = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    return text if len(text) <= most else f"{text[:most]}…"
