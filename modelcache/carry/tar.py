"""Headers of an export's members: the one way in which a name and a size are written as tar.

Source of the layout: POSIX.1-2001, pax Interchange Format (ustar header block, extended header record `size`). A reader that
compares a header with what would be written for the same name and size lets nothing else in: no link, device or owner.
"""

from __future__ import annotations

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
"""Two blocks of zeros end an archive."""
MTIME_S = 315_532_800
"""1980-01-01T00:00:00Z, as files of snapshots have it: equal content gives equal archives."""
MAX_USTAR_BYTES = 8**11 - 1
"""Largest size that eleven octal digits hold; larger ones stand in an extended header."""
PAX_NAME = "././@PaxHeader"
_NAME_BYTES = 100
_FILE, _PAX = b"0", b"x"


def header(name: str, size_bytes: int) -> bytes:
    """What stands before a member's bytes: one block, or three where the size is over 8 GiB."""
    if size_bytes <= MAX_USTAR_BYTES:
        return _block(name, size_bytes, _FILE)
    record = _record(size_bytes)
    return _block(PAX_NAME, len(record), _PAX) + record + padding(len(record)) + _block(name, 0, _FILE)


def padding(size_bytes: int) -> bytes:
    """The zeros between a member's last byte and the next block."""
    return bytes(-size_bytes % BLOCK_BYTES)


def member_bytes(name: str, size_bytes: int) -> int:
    """What a member takes in all."""
    return len(header(name, size_bytes)) + size_bytes + len(padding(size_bytes))


def is_extended(block: bytes) -> bool:
    """Whether two more blocks belong to this header."""
    return block[156:157] == _PAX


def read_header(data: bytes) -> tuple[str, int]:
    """Name and size that these blocks (one, or three) were written for.

    Raises:
        ValueError: `header` writes no such blocks.
    """
    last = data[-BLOCK_BYTES:]
    name = last[:_NAME_BYTES].rstrip(b"\0").decode("ascii")
    if is_extended(data):
        record = data[BLOCK_BYTES : 2 * BLOCK_BYTES].rstrip(b"\0")
        size_bytes = int(record.rpartition(b"=")[2])
    else:
        size_bytes = int(last[124:135], 8)
    if header(name, size_bytes) != data:
        raise ValueError("not a header of an export")
    return name, size_bytes


def _record(size_bytes: int) -> bytes:
    """`LENGTH size=N\\n`, where LENGTH counts itself."""
    rest = f" size={size_bytes}\n"
    length = len(rest) + 1
    while len(f"{length}{rest}") != length:
        length += 1
    return f"{length}{rest}".encode("ascii")


def _block(name: str, size_bytes: int, kind: bytes) -> bytes:
    encoded = name.encode("ascii")
    if len(encoded) > _NAME_BYTES or size_bytes < 0:
        raise ValueError(f"not a member of an export: `{name}` of {size_bytes} bytes")
    block = bytearray(BLOCK_BYTES)
    block[: len(encoded)] = encoded
    fields = b"0000444\0" + b"0000000\0" * 2 + b"%011o\0%011o\0" % (size_bytes, MTIME_S)  # mode, owner, group, size, time
    block[100:148] = fields
    block[148:156] = b" " * 8  # what the checksum counts in its own place
    block[156:157] = kind
    block[257:265] = b"ustar\0" + b"00"
    block[329:345] = b"0000000\0" * 2  # device numbers
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
