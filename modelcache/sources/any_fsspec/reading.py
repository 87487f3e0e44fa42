"""Looking at files and reading blocks of them, through fsspec; every function here blocks and is run by `calls.called`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from modelcache.abc.source import RemoteFile
from modelcache.errors import BodyCut, InvalidUri, ProtocolViolation, SourceChanged, UnsafePath
from modelcache.sources.any_fsspec.filesystems import Filesystem
from modelcache.sources.any_fsspec.prepared import is_oss
from modelcache.sources.any_fsspec.versions import Stated, has_time, stated

Info = Mapping[str, Any]
_CUT_OR_DECODED = re.compile(r"[%?#]")
MAX_NAMES = 200_000
"""Files and directories looked at for one listing: twice as many as it may have files."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a `RemoteFile.locator` says: the filesystem's name of a file, and all that it stated of its version."""

    path: str
    seen: str

    @property
    def locator(self) -> str:
        return json.dumps([self.path, self.seen])

    @classmethod
    def of(cls, file: RemoteFile) -> Self:
        return cls(*json.loads(file.locator))


def check_name(filesystem: Filesystem, name: str, address: str) -> None:
    """Raises UnsafePath: the filesystem takes a part of the name for something else, and would serve another file in its place."""
    taken = str(filesystem._strip_protocol(name))
    if not taken.rstrip("/").endswith(name.strip("/")):
        raise _misread(name, address, taken)


def check_asked(filesystem: Filesystem, name: str, listed: Stated, address: str) -> None:
    """Of a name that URLs are cut or decoded at: what answers to it has to be what was listed under it.

    Raises: UnsafePath.
    """
    if not _CUT_OR_DECODED.search(name):
        return
    try:
        found = look(filesystem, name, address).seen
    except FileNotFoundError:
        found = "nothing"
    if found != listed.seen:
        raise _misread(name, address, found)


def _misread(name: str, address: str, found: str) -> UnsafePath:
    message = f"the filesystem can't be asked for {name!a}: it takes a part of that for something else"
    return UnsafePath(message, address=address, expected=ascii(name), got=ascii(found))


def look(filesystem: Filesystem, path: str, address: str) -> Stated:
    """What a file's version is now."""
    filesystem.invalidate_cache()
    return described(filesystem, filesystem.info(path), path, address)


def described(filesystem: Filesystem, info: Info, path: str, address: str) -> Stated:
    """Raises ProtocolViolation: it does not state the size, or serves other bytes than it states the size of."""
    encoding = (info.get("content_settings") or {}).get("content_encoding")  # Azure's
    if encoding not in (None, "", "identity"):
        hint = "store it without, or leave it out with a pattern"
        raise ProtocolViolation("the object is stored with a Content-Encoding", address=address, got=ascii(encoding), hint=hint)
    modified = None
    if not has_time(info) and _says(filesystem, "modified"):
        modified = filesystem.modified(path)
    return stated(info, modified, time.time(), address=address)


def below(filesystem: Filesystem, path: str, address: str) -> dict[str, Info]:
    """A file by itself (under its own path), or everything under a directory that is none; by the filesystem's names."""
    filesystem.invalidate_cache()
    info = filesystem.info(path)
    if info.get("type") != "directory":
        return {path: _followed(filesystem, path, info)}
    found: dict[str, Info] = _walked(filesystem, path, address) if _walks(filesystem) else filesystem.find(path, detail=True)
    return {name: each for name, each in found.items() if each.get("type") != "directory"}


def _walked(filesystem: Filesystem, path: str, address: str) -> dict[str, Info]:
    """Every file below a directory. fsspec's own way there leaves out directories that can't be read: a model would be short of their
    files, and nobody would know."""
    found: dict[str, Info] = {}
    todo = [filesystem._strip_protocol(path).rstrip("/")]
    seen = set(todo)
    while todo:
        directory = todo.pop()
        for info in filesystem.ls(directory or "/", detail=True):
            name = str(info["name"])
            if info["type"] != "directory":
                found[name] = info
            elif name.rstrip("/") not in seen:
                seen.add(name.rstrip("/"))
                todo.append(name.rstrip("/"))
        if len(found) + len(seen) > MAX_NAMES:
            raise InvalidUri(f"over {MAX_NAMES:,} files and directories are under one URI", address=address)
    return found


def _followed(filesystem: Filesystem, name: str, info: Info) -> Info:
    """A link (of SFTP) leads to what it links to."""
    followed: Info = filesystem.info(name) if info.get("type") == "link" else info
    return followed


class Reader:
    """One file, read block by block over one instance. Used by one thread at a time."""

    def __init__(self, filesystem: Filesystem, file: RemoteFile, address: str) -> None:
        self.filesystem = filesystem
        self._file = file
        self._name = Name.of(file)
        self._address = address
        self._handle: Any = None

    def block(self, start: int, size_bytes: int) -> bytes:
        """Bytes of exactly the listed version: after them the version is looked at, so that none of another is handed out.

        Raises: SourceChanged, BodyCut; whatever the filesystem raises.
        """
        # Bytes of its own, never the caller's buffer: a call that was given up would go on writing into it.
        data = bytes(self._read(start, size_bytes))
        now = look(self.filesystem, self._name.path, self._address)
        if now.seen != self._name.seen or now.size_bytes != self._file.size_bytes:
            message = "the file is no longer the listed version"
            raise SourceChanged(message, address=self._address, expected=self._name.seen, got=now.seen)
        if len(data) > size_bytes:
            got = f"{len(data)} bytes"
            raise ProtocolViolation("more bytes than were asked for", address=self._address, expected=f"{size_bytes} bytes", got=got)
        if len(data) < size_bytes:
            got = f"{len(data)} bytes"
            raise BodyCut("fewer bytes than were asked for", address=self._address, expected=f"{size_bytes} bytes", got=got)
        return data

    def go_on_with(self, filesystem: Filesystem) -> None:
        """Another instance; the one before is somebody else's to end."""
        self.filesystem = filesystem
        self._handle = None

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _read(self, start: int, size_bytes: int) -> bytes:
        if getattr(self.filesystem, "async_impl", False) or _is_memory(self.filesystem):
            data: bytes = self.filesystem.cat_file(self._name.path, start=start, end=start + size_bytes)
            return data
        if self._handle is None:
            self._handle = _opened(self.filesystem, self._name.path)
        self._handle.seek(start)
        parts, left_bytes = [], size_bytes
        while left_bytes:
            part = self._handle.read(left_bytes)
            if not part:
                break
            parts.append(part[:left_bytes] if is_oss(self.filesystem) else part)  # ossfs counts the last byte of a range in
            left_bytes -= len(parts[-1])
        return b"".join(parts)


def _opened(filesystem: Filesystem, path: str) -> Any:
    """A file open for reading, without read-ahead, which fetches megabytes behind each range that nobody asked for."""
    from fsspec.caching import caches
    from fsspec.spec import AbstractBufferedFile

    handle = filesystem.open(path, "rb")
    if isinstance(handle, AbstractBufferedFile):
        handle.cache = caches["none"](handle.blocksize, handle._fetch_range, handle.size)
    return handle


def _says(filesystem: Filesystem, method: str) -> bool:
    """Whether the filesystem has a method of its own, in place of fsspec's that raises or goes a long way round."""
    from fsspec import AbstractFileSystem

    return getattr(type(filesystem), method, None) is not getattr(AbstractFileSystem, method, None)


def _walks(filesystem: Filesystem) -> bool:
    """Whether it finds files as fsspec does for all that don't know better: directory by directory."""
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    if is_oss(filesystem):
        return True  # its `find` does so, too
    if isinstance(filesystem, AsyncFileSystem):
        walks: bool = type(filesystem)._find is AsyncFileSystem._find
        return walks
    return type(filesystem).find is AbstractFileSystem.find


def _is_memory(filesystem: Filesystem) -> bool:
    """Its `open` gives all threads one file with one position."""
    from fsspec.implementations.memory import MemoryFileSystem

    return isinstance(filesystem, MemoryFileSystem)
