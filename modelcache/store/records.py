"""Small JSON records of the store: one canonical form, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from modelcache.errors import DamagedRecord
from modelcache.store import durable
from modelcache.store.faults import is_of_the_disk
from modelcache.store.layout import Layout

VERSION = 1


def encode(record: dict[str, object]) -> bytes:
    """Canonical JSON: UTF-8, sorted keys, no spaces, one newline at the end; `version` is added."""
    return encode_value(record | {"version": VERSION})


def encode_value(value: object) -> bytes:
    """`encode` of what is no record of its own: no `version`."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8") + b"\n"


def decode(data: bytes, address: str) -> dict[str, object]:
    """The record of these bytes.

    Raises:
        DamagedRecord: no JSON object, or of another version.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedRecord(f"not a record ({error})", address=address) from error
    if not isinstance(record, dict):
        raise DamagedRecord("not a record: no JSON object", address=address)
    if record.get("version") != VERSION:
        raise DamagedRecord("record of a version that is not known", address=address, expected=str(VERSION), got=str(record.get("version")))
    return record


def replace(path: Path, data: bytes, *, mtime_s: float | None = None) -> None:
    """Put a record in place of what is there, durably; a reader sees the old or the new one. Under the shared store lock."""
    temporary = Layout.temporary(path.parent)
    try:
        durable.write_new(temporary, data, sync=True)
        if mtime_s is not None:
            durable.utime(temporary, mtime_s)
        durable.rename(temporary, path)
    except OSError:
        remove(temporary)
        raise
    durable.fsync_directory(path.parent)


def remove(path: Path) -> bool:
    """Unlink a file; False if it was gone."""
    try:
        durable.unlink(path)
    except FileNotFoundError:
        return False
    return True


def field(record: Any, name: str, *kinds: type) -> Any:
    """A field of a record, of one of these types exactly (a bool is no int). Raises KeyError, TypeError."""
    value = record[name]
    if type(value) not in kinds:
        raise TypeError(f"`{name}` is of type {type(value).__name__}")
    return value


def read(path: Path) -> bytes:
    """The bytes of a record.

    Raises:
        FileNotFoundError: there is none.
        DamagedRecord: the disk does not give it back.
        OSError: nobody can tell just now: too many files are open, or there is no memory.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        raise DamagedRecord(f"the record can't be read ({error.strerror})", address=str(path)) from error


def read_line(path: Path) -> bytes:
    """The first line of a record of several, its newline with it; of one that has none, everything. Raises as `read`."""
    try:
        with path.open("rb") as file:
            return file.readline()
    except FileNotFoundError:
        raise
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        raise DamagedRecord(f"the record can't be read ({error.strerror})", address=str(path)) from error


def names(directory: Path, suffix: str = ".json") -> list[str]:
    """Names of the records in a directory, without `suffix`; temporary files are left out."""
    with os.scandir(directory) as entries:
        found = [entry.name for entry in entries]
    return [name.removesuffix(suffix) for name in found if name.endswith(suffix) and not name.startswith(".")]
