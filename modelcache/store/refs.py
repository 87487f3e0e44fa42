"""Refs on disk: what a URI at an origin resolved to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelcache.abc.store import Ref, RefFile, RefKey
from modelcache.digest import Digest, sha256
from modelcache.errors import DamagedRecord, ModelCacheError
from modelcache.store import durable, records
from modelcache.store.layout import half_digest
from modelcache.store.records import field
from modelcache.store.root import Root

Signature = tuple[int, int, int]


class Refs:
    """One file per (URI, origin), named by digests of both, so that the refs of a URI are found without reading the others.

    Parsed refs are kept in memory and believed while their file's inode, size and mtime stay the same.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._layout = root.layout
        self._parsed: dict[str, tuple[Signature, Ref | None]] = {}

    def get(self, key: RefKey) -> Ref | None:
        """The ref, or None if there is none or it is damaged."""
        found = self._read(self._layout.ref(key))
        return found if found is not None and found.key == key else None

    def of_uri(self, uri: str) -> list[Ref]:
        start = half_digest(uri)
        return [ref for ref in self._every(start) if ref.key.uri == uri]

    def every(self) -> list[Ref]:
        """All refs that can be read, sorted by URI and origin."""
        return self._every("")

    def of_manifest(self, digest: Digest) -> list[Ref]:
        return [ref for ref in self.every() if ref.manifest == digest]

    def damaged(self) -> list[DamagedRecord]:
        """Why the refs that can't be read can't be."""
        found = []
        for path in self._paths(""):
            try:
                if encode_ref(self._parse(path)) != records.read(path):
                    raise DamagedRecord("the ref is not in canonical form", address=str(path))
            except DamagedRecord as error:
                found.append(error)
            except FileNotFoundError:
                continue
        return found

    # -- under the shared store lock ------------------------------------------------------------------------------

    def put(self, ref: Ref) -> None:
        records.replace(self._layout.ref(ref.key), encode_ref(ref))

    def touch(self, ref: Ref, checked_at_s: float) -> None:
        """Renew the ref, unless it was removed or replaced meanwhile."""
        kept = self.get(ref.key)
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

    def discard_damaged(self, path: Path) -> None:
        """Remove a ref's file if it is still one that can't be read."""
        if str(path) in {str(error.address) for error in self.damaged()}:
            records.remove(path)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _paths(self, start: str) -> list[Path]:
        return [self._layout.refs / f"{name}.json" for name in records.names(self._layout.refs) if name.startswith(start)]

    def _every(self, start: str) -> list[Ref]:
        paths = self._paths(start)
        found = [ref for path in paths if (ref := self._read(path)) is not None]
        if start == "":
            names = {path.name for path in paths}
            for gone in self._parsed.keys() - names:
                self._parsed.pop(gone, None)
        return sorted(found, key=lambda ref: (ref.key.uri, ref.key.origin))

    def _read(self, path: Path) -> Ref | None:
        try:
            stat = os.stat(path)
            signature = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            known = self._parsed.get(path.name)
            if known is not None and known[0] == signature:
                return known[1]
            ref = self._parse(path)
        except FileNotFoundError:
            return None
        except DamagedRecord:
            ref = None
        self._parsed[path.name] = (signature, ref)
        return ref

    def _parse(self, path: Path) -> Ref:
        ref = decode_ref(records.read(path), str(path))
        if self._layout.ref(ref.key) != path:
            raise DamagedRecord("the ref is filed under another name than its own", address=str(path), got=ref.key.uri)
        return ref


def encode_ref(ref: Ref) -> bytes:
    """`docs/format.md`, Refs."""
    return records.encode(
        {
            "uri": ref.key.uri,
            "origin": ref.key.origin,
            "revision": ref.revision,
            "immutable": ref.immutable,
            "manifest": ref.manifest.hex,
            "created_at_s": float(ref.created_at_s),
            "checked_at_s": float(ref.checked_at_s),
            "files": [
                {
                    "path": file.path,
                    "size_bytes": file.size_bytes,
                    "validator": file.validator,
                    "sha256": file.sha256.hex,
                    "stated": [str(digest) for digest in file.stated],
                }
                | ({"claimed": True} if file.claimed else {})
                for file in ref.files
            ],
        }
    )


def decode_ref(data: bytes, address: str) -> Ref:
    """Read `encode_ref`'s bytes back. Raises DamagedRecord."""
    record: Any = records.decode(data, address)
    try:
        ref = Ref(
            key=RefKey(field(record, "uri", str), field(record, "origin", str)),
            revision=field(record, "revision", str),
            immutable=field(record, "immutable", bool),
            manifest=sha256(field(record, "manifest", str)),
            files=tuple(_file(item) for item in field(record, "files", list)),
            created_at_s=field(record, "created_at_s", float),
            checked_at_s=field(record, "checked_at_s", float),
        )
    except (ModelCacheError, ValueError, TypeError, KeyError) as error:
        raise DamagedRecord(f"not a ref ({error})", address=address) from error
    return ref


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
