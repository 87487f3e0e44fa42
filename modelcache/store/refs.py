"""Refs on disk: what a URI at an origin resolved to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from modelcache.abc.snapshot import Ref, RefFile, RefHead, RefKey
from modelcache.digest import Digest, sha256
from modelcache.errors import DamagedRecord, ModelCacheError
from modelcache.store import durable, records
from modelcache.store.keys import decode_key, encode_key
from modelcache.store.layout import half_digest
from modelcache.store.parsed import Parsed, damaged_of
from modelcache.store.records import field
from modelcache.store.root import Root

T = TypeVar("T", Ref, RefHead)


class Refs:
    """One file per URI, and origin (with the compartment, of one that is in one), named by digests of both, so that the refs of a URI
    are found without reading the others.

    Its first line, the head, is all that a hit reads, once for as long as the file stays the same.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._layout = root.layout
        self._heads = Parsed(self._parse_head)

    def head(self, key: RefKey) -> RefHead | None:
        """The head, or None if there is none or it is damaged."""
        found = self._heads.of(self._layout.ref(key))
        return found if found is not None and found.key == key else None

    def get(self, key: RefKey) -> Ref | None:
        """The whole ref, or None if there is none or any of it is damaged."""
        found = _unless_damaged(self.parse, self._layout.ref(key))
        return found if found is not None and found.key == key else None

    def of_uri(self, uri: str) -> list[Ref]:
        return [ref for ref in self.whole(half_digest(uri)) if ref.key.uri == uri]

    def whole(self, start: str = "") -> list[Ref]:
        """All refs that can be read, or those whose files' names begin so, with their files; sorted by URI and origin."""
        return _sorted(ref for path in self._paths(start) if (ref := _unless_damaged(self.parse, path)) is not None)

    def every(self) -> list[RefHead]:
        """All heads that can be read, sorted by URI and origin."""
        paths = self._paths("")
        found = [head for path in paths if (head := self._heads.of(path)) is not None]
        self._heads.forget_all_but({path.name for path in paths})
        return _sorted(found)

    def of_manifest(self, digest: Digest) -> list[RefHead]:
        return [ref for ref in self.every() if ref.manifest == digest]

    def damaged(self) -> list[DamagedRecord]:
        """Why the refs that can't be read can't be."""
        return damaged_of(self._paths(""), self.parse)

    def parse(self, path: Path) -> Ref:
        """The ref in this file. Raises FileNotFoundError, DamagedRecord."""
        return self._own(decode_ref(records.read(path), str(path)), path)

    # -- under the shared store lock ------------------------------------------------------------------------------

    def put(self, ref: Ref) -> None:
        records.replace(self._layout.ref(ref.key), encode_ref(ref))

    def touch(self, ref: Ref, checked_at_s: float) -> None:
        """Renew the ref, unless it was removed or replaced meanwhile."""
        kept = self.head(ref.key)
        if kept is not None and (kept.manifest, kept.revision) == (ref.manifest, ref.revision):
            self.put(replace(ref, checked_at_s=checked_at_s))

    def remove(self, key: RefKey) -> bool:
        """False if there was none."""
        return self.remove_all([key]) > 0

    def remove_all(self, keys: Iterable[RefKey]) -> int:
        """Remove refs; how many there were."""
        count = sum(records.remove(self._layout.ref(key)) for key in keys)
        if count:
            durable.fsync_directory(self._layout.refs)
        return count

    def is_damaged(self, path: Path) -> bool:
        """Whether this file is here and is no ref."""
        try:
            self.parse(path)
        except DamagedRecord:
            return True
        except FileNotFoundError:
            return False
        return False

    def discard_damaged(self, path: Path) -> None:
        """Remove a ref's file if it is still one that can't be read."""
        if self.is_damaged(path):
            records.remove(path)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _paths(self, start: str) -> list[Path]:
        return [self._layout.refs / f"{name}.json" for name in records.names(self._layout.refs) if name.startswith(start)]

    def _parse_head(self, path: Path) -> RefHead:
        return self._own(decode_head(records.read_line(path), str(path))[0], path)

    def _own(self, ref: T, path: Path) -> T:
        if self._layout.ref(ref.key) != path:
            raise DamagedRecord("the ref is filed under another name than its own", address=str(path), got=ref.key.uri)
        return ref


def _unless_damaged(read: Callable[[Path], T], path: Path) -> T | None:
    try:
        return read(path)
    except (FileNotFoundError, DamagedRecord):
        return None


def _sorted(refs: Iterable[T]) -> list[T]:
    return sorted(refs, key=lambda ref: (ref.key.uri, ref.key.origin, ref.key.compartment))


# -- bytes --------------------------------------------------------------------------------------------------------


def encode_ref(ref: Ref) -> bytes:
    """`docs/format.md`, Refs: the head and the files, a line each."""
    files = records.encode_value(
        [
            {
                "path": file.path,
                "size_bytes": file.size_bytes,
                "validator": file.validator,
                "sha256": file.sha256.hex,
                "stated": [str(digest) for digest in file.stated],
            }
            | ({"claimed": True} if file.claimed else {})
            for file in ref.files
        ]
    )
    return encode_head(ref.head, hashlib.sha256(files).hexdigest()) + files


def encode_head(head: RefHead, files_sha256: str) -> bytes:
    record: dict[str, object] = {
        **encode_key(head.key),
        "revision": head.revision,
        "immutable": head.immutable,
        "manifest": head.manifest.hex,
        "size_bytes": head.size_bytes,
        "file_count": head.file_count,
        "created_at_s": float(head.created_at_s),
        "checked_at_s": float(head.checked_at_s),
        "files_sha256": files_sha256,
    }
    return records.encode(record | {"check": _check(record)})


def decode_ref(data: bytes, address: str) -> Ref:
    """Read `encode_ref`'s bytes back. Raises DamagedRecord."""
    line, newline, files_line = data.partition(b"\n")
    head, files_sha256 = decode_head(line + newline, address)
    if hashlib.sha256(files_line).hexdigest() != files_sha256:
        raise DamagedRecord("the files of the ref are not those of its head", address=address, expected=files_sha256)
    files = decode_files(files_line, address)
    ref = Ref(head.key, head.revision, head.immutable, head.manifest, files, head.created_at_s, head.checked_at_s)
    if ref.head != head or encode_ref(ref) != data:
        raise DamagedRecord("the ref is not in canonical form", address=address)
    return ref


def decode_head(line: bytes, address: str) -> tuple[RefHead, str]:
    """The head of a ref and the digest of its files. Raises DamagedRecord."""
    record: Any = records.decode(line, address)
    try:
        head = RefHead(
            key=decode_key(record),
            revision=field(record, "revision", str),
            immutable=field(record, "immutable", bool),
            manifest=sha256(field(record, "manifest", str)),
            size_bytes=field(record, "size_bytes", int),
            file_count=field(record, "file_count", int),
            created_at_s=field(record, "created_at_s", float),
            checked_at_s=field(record, "checked_at_s", float),
        )
        files_sha256 = sha256(field(record, "files_sha256", str)).hex
        same = encode_head(head, files_sha256) == line
    except (ModelCacheError, ValueError, TypeError, KeyError) as error:
        raise DamagedRecord(f"not a ref ({error})", address=address) from error
    if not same:
        raise DamagedRecord("the head of the ref is not what its check says", address=address)
    return head, files_sha256


def decode_files(line: bytes, address: str) -> tuple[RefFile, ...]:
    """The second line of a ref. Raises DamagedRecord."""
    try:
        found = json.loads(line)
        if not isinstance(found, list):
            raise TypeError("no list of files")
        return tuple(_file(item) for item in found)
    except (ModelCacheError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedRecord(f"not the files of a ref ({error})", address=address) from error


def _check(record: dict[str, object]) -> str:
    return xxhash.xxh3_128_hexdigest(records.encode(record))


def _file(item: dict[str, Any]) -> RefFile:
    return RefFile(
        path=field(item, "path", str),
        size_bytes=field(item, "size_bytes", int),
        validator=field(item, "validator", str),
        sha256=sha256(field(item, "sha256", str)),
        stated=tuple(_stated(text) for text in field(item, "stated", list)),
        claimed="claimed" in item and field(item, "claimed", bool),
    )


def _stated(text: object) -> Digest:
    if not isinstance(text, str):
        raise TypeError("a stated digest is no text")
    return Digest.parse(text)
