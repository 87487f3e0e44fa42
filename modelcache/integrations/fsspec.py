"""`modelcache` as an fsspec file system: `fsspec.open("modelcache::s3://bucket/model/config.json")`, read-only, through the cache.

Found by fsspec through the entry point `fsspec.specs`. `docs/fsspec.md` says what it takes and what it does.
"""

from __future__ import annotations

import errno
import io
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from modelcache.errors import NotInstalled

try:
    from fsspec.implementations.chained import ChainedFileSystem
    from fsspec.utils import stringify_path
except ModuleNotFoundError as error:
    raise NotInstalled.needed_for("file systems need", error, "modelcache[fsspec]") from None

from modelcache.cache import ModelCache, Refresh
from modelcache.config import Config
from modelcache.errors import AccessDenied, BadConfig, InvalidUri, Missing, NotCached, OriginUntrusted, Unavailable
from modelcache.integrations.options import configured
from modelcache.integrations.shared import SharedCaches
from modelcache.single_files import FileEntry
from modelcache.sources.archive.source import is_archive_name
from modelcache.unpack import KEPT_AS_FILES
from modelcache.uri import ALIASES

MAX_LISTINGS = 64
"""Listings that one file system remembers."""
OPEN_WITHOUT_EFFECT = frozenset({"autocommit", "block_size", "cache_options", "cache_type", "fill_cache"})
"""Options of fsspec's `open` that say how it reads, and not what."""
_URLS = ("http", "https")
_CACHES = SharedCaches()


class HeldFile(io.BufferedReader):
    """A file of a snapshot, open for reading (a real local file: seekable, `mmap`-able), held against eviction until it is closed."""

    def __init__(self, raw: io.FileIO, held: ExitStack) -> None:
        self._held = held
        super().__init__(raw)
        self.size = os.fstat(self.fileno()).st_size

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._held.close()


class ModelCacheFileSystem(ChainedFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Read-only view of origins through a `ModelCache`. Paths are what the target's own fsspec file system takes (`bucket/key`,
    `/directory/file`, `https://…`), or, without a target, whole URIs.

    Instances of equal settings share one cache, whatever thread they belong to; a forked process gets its own.
    """

    protocol: ClassVar[str] = "modelcache"
    local_file = True
    _strip_tokenize_options = ("fo",)

    def __init__(
        self,
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        fo: str | None = None,
        root: str | Path | None = None,
        refresh: str = "auto",
        **options: Any,
    ) -> None:
        """
        Args:
            target_protocol: scheme of the origin; set by `modelcache::s3://…`. None: paths are whole URIs.
            target_options: s3fs', gcsfs' or huggingface_hub's names of what modelcache has settings for; others are refused.
            fo: the path, where fsspec chains; not used.
            root: the store's directory; by default as everywhere (`docs/operations.md`).
            refresh: `auto`, `always` or `never`: when a file that is here is asked for again.

        Raises:
            BadConfig: an option that can't be honoured.
        """
        super().__init__(**options)
        self._target = None if target_protocol is None else ALIASES.get(target_protocol, target_protocol)
        configured_options = dict(target_options or {})
        unknown = {name: value for name, value in options.items() if name != "target_options"}
        config = configured(Config.load(), self._target, configured_options)
        self._config = configured(config, None, unknown)
        self._root = root
        try:
            self._refresh = Refresh(refresh)
        except ValueError:
            raise BadConfig("`refresh` is none of `auto`, `always`, `never`", got=refresh) from None
        self._lock = threading.Lock()
        self._listings: dict[str, tuple[float, tuple[FileEntry, ...]]] = {}

    @property
    def cache(self) -> ModelCache:
        """The cache that it reads through; shared, so don't close it: `clear_instance_cache` does."""
        return _CACHES.get(self._config, self._root)

    @classmethod
    def clear_instance_cache(cls) -> None:
        """Forget every instance, and close the caches that they shared."""
        super().clear_instance_cache()
        _CACHES.close()

    # -- paths ------------------------------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = str(stringify_path(path))
        for mark in ("modelcache::", "modelcache://"):
            text = text.removeprefix(mark)
        return text.rstrip("/") if text.rstrip("/") and not text.endswith("://") else text

    def unstrip_protocol(self, name: str) -> str:
        stripped = str(self._strip_protocol(name))
        return f"modelcache::{stripped}" if "://" in stripped else f"modelcache::{self._target or 'file'}://{stripped}"

    def _uri(self, path: str) -> str:
        """The storage URI of a path. A path is a name as it is: a `#` or `?` in it is a part of it, but for `?versionId=`, and an archive
        is a file."""
        text = str(self._strip_protocol(path))
        scheme, mark, body = text.partition("://")
        if not mark:
            if self._target is None:
                raise InvalidUri("without a target, paths are whole URIs", got=text, hint=f"write `modelcache://SCHEME://{text}`")
            scheme, body = self._target, text
        name, question, query = body.partition("?")
        if scheme in _URLS:
            return f"{scheme}://{body}{'#unpack=false' if is_archive_name(name) else ''}"
        if scheme != "file" and question and not query.startswith(("versionId=", "generation=")):
            name, body = body, f"{body}?"
        if scheme not in KEPT_AS_FILES and is_archive_name(name):
            return f"{scheme}://{body}#unpack=false"
        return f"{scheme}://{body}{'#' if '#' in body or body != body.rstrip() else ''}"

    # -- looking ----------------------------------------------------------------------------------------------------

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        name = str(self._strip_protocol(path))
        entries = self._entries(name)
        only = entries[0]
        if only.path == "":
            return _file_info(name, only)
        return _directory_info(name)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        name = str(self._strip_protocol(path))
        found: dict[str, dict[str, Any]] = {}
        for entry in self._entries(name):
            child, slash, _ = entry.path.partition("/")
            full = f"{name.rstrip('/')}/{child}" if child else name
            found.setdefault(full, _directory_info(full) if slash else _file_info(full, entry))
        infos = [found[full] for full in sorted(found)]
        return infos if detail else [info["name"] for info in infos]

    def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any) -> Any:
        """As fsspec's, from one listing instead of one a directory."""
        name = str(self._strip_protocol(path))
        found: dict[str, dict[str, Any]] = {}
        for entry in self._entries(name):
            parts = entry.path.split("/") if entry.path else []
            for count in range(1, len(parts)) if withdirs else ():
                if maxdepth is None or count <= maxdepth:
                    directory = "/".join((name, *parts[:count]))
                    found[directory] = _directory_info(directory)
            if maxdepth is None or len(parts) <= maxdepth:
                full = "/".join((name, *parts))
                found[full] = _file_info(full, entry)
        ordered = {full: found[full] for full in sorted(found)}
        return ordered if detail else list(ordered)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether it is there; an origin that can't be asked is an error, and no no."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def isdir(self, path: str) -> bool:
        try:
            return bool(self.info(path)["type"] == "directory")
        except FileNotFoundError:
            return False

    def isfile(self, path: str) -> bool:
        try:
            return bool(self.info(path)["type"] == "file")
        except FileNotFoundError:
            return False

    def ukey(self, path: str) -> str:
        """Changes when the content does, where the digest is known before a fetch; else when the size does."""
        info = self.info(path)
        return str(info.get("sha256") or f"size-{info['size']}")

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget listings."""
        with self._lock:
            self._listings.clear()
        super().invalidate_cache(path)

    def _entries(self, name: str) -> tuple[FileEntry, ...]:
        """Files under a path: of a listing that is remembered, of that path or a directory above it, or a new one."""
        now_s = time.monotonic()
        with self._lock:
            fresh = {listed: kept for listed, kept in self._listings.items() if now_s - kept[0] < self._config.refresh_s}
            self._listings = fresh
        for listed, (_, entries) in fresh.items():
            below = _below(entries, listed, name)
            if below:
                return below
        with _as_os_errors(name):
            entries = self._listed(self._uri(name))
        with self._lock:
            self._listings[name] = (now_s, entries)
            while len(self._listings) > MAX_LISTINGS:
                del self._listings[next(iter(self._listings))]
        return entries

    def _listed(self, uri: str) -> tuple[FileEntry, ...]:
        try:
            return self.cache.entries(uri, offline=self._refresh is Refresh.NEVER)
        except OriginUntrusted:
            raise
        except Unavailable as error:
            with suppress(NotCached):
                return self.cache.entries(uri, offline=True)
            raise error

    # -- reading ----------------------------------------------------------------------------------------------------

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> HeldFile:
        name = str(self._strip_protocol(path))
        if mode != "rb":
            _refuse(name)
        unknown = ", ".join(sorted(kwargs.keys() - OPEN_WITHOUT_EFFECT))
        if unknown:
            raise BadConfig(f"modelcache has no such option of `open`: {unknown}", got=unknown)
        uri = self._uri(name)
        with ExitStack() as held, _as_os_errors(name):
            found = None
            if self._refresh is not Refresh.ALWAYS:
                found = held.enter_context(self.cache.cached_file(uri, offline=self._refresh is Refresh.NEVER))
            return _held_file(found or self._fetched(name, uri, held), held)

    def _fetched(self, name: str, uri: str, held: ExitStack) -> Path:
        """The file, as a snapshot of its own; where the origin can't be asked, the last version that is here."""
        try:
            if self._refresh is not Refresh.NEVER and self.info(name)["type"] == "directory":
                raise IsADirectoryError(errno.EISDIR, "a directory, not a file", name)
            snapshot = held.enter_context(self.cache.open(uri, refresh=self._refresh))
        except OriginUntrusted:
            raise
        except Unavailable:
            found = held.enter_context(self.cache.cached_file(uri, offline=True))
            if found is None or self._refresh is Refresh.ALWAYS:
                raise
            return found
        files = [path for path in snapshot.path.rglob("*") if path.is_file()]
        if len(files) != 1:
            raise IsADirectoryError(errno.EISDIR, "a directory, not a file", name)
        return files[0]

    # -- refused ----------------------------------------------------------------------------------------------------

    def mkdir(self, path: str, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(path)

    def makedirs(self, path: str, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(path)

    def rmdir(self, path: str) -> NoReturn:
        _refuse(path)

    def rm(self, path: str, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(path)

    def rm_file(self, path: str) -> NoReturn:
        _refuse(path)

    def _rm(self, path: str) -> NoReturn:
        _refuse(path)

    def copy(self, path1: str, path2: str, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(str(path2))

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> NoReturn:
        _refuse(path2)

    def mv(self, path1: str, path2: str, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(path1)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> NoReturn:
        _refuse(path)

    def put(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(str(rpath))

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(rpath)

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> NoReturn:
        _refuse(path)


def _held_file(path: Path, held: ExitStack) -> HeldFile:
    return HeldFile(io.FileIO(str(path), "r"), held.pop_all())


def _file_info(name: str, entry: FileEntry) -> dict[str, Any]:
    return {"name": name, "size": entry.size_bytes, "type": "file", "sha256": entry.sha256}


def _directory_info(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _below(entries: tuple[FileEntry, ...], listed: str, name: str) -> tuple[FileEntry, ...]:
    """What of a listing is at `name`, or below it."""
    if listed == name:
        return entries
    if not name.startswith(f"{listed}/"):
        return ()
    relative = name.removeprefix(f"{listed}/")
    file = tuple(FileEntry("", entry.size_bytes, entry.sha256) for entry in entries if entry.path == relative)
    return file or tuple(
        FileEntry(entry.path.removeprefix(f"{relative}/"), entry.size_bytes, entry.sha256)
        for entry in entries
        if entry.path.startswith(f"{relative}/")
    )


@contextmanager
def _as_os_errors(name: str) -> Iterator[None]:
    """What callers of file systems catch; the error of modelcache, with its hint, is the cause."""
    try:
        yield
    except Missing as error:
        raise FileNotFoundError(errno.ENOENT, error.message, name) from error
    except AccessDenied as error:
        raise PermissionError(errno.EACCES, error.message, name) from error


def _refuse(name: str) -> NoReturn:
    raise OSError(errno.EROFS, "modelcache is read-only", name)
