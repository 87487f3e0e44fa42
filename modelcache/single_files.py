"""Single files of models: found in a snapshot that is here, or told by the origin's listing, without fetching the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from modelcache.abc.snapshot import Ref, RefHead, RefKey
from modelcache.abc.source import Listing
from modelcache.abc.store import Store
from modelcache.errors import NotCached
from modelcache.patience import Cancellation
from modelcache.uri import StorageUri, UriSecrets, parse_uri

_WITHOUT_PARENTS = frozenset({"http", "https"})
"""Schemes whose URIs name single files: what stands before a `/` is no model."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file under a URI.

    Attributes:
        path: relative to what the URI names; empty: the URI names this file itself.
        sha256: hex digits, where they are known.
    """

    path: str
    size_bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class _Covering:
    """A ref whose model a URI is in, and where: empty if it is the model itself."""

    ref: Ref
    relative: str


class SingleFiles(ABC):
    """The part of `ModelCache` that looks into models.

    A file of a model that is here is read from that snapshot, if the ref of the model is fresh (its URI names an exact version, or
    the origin confirmed it within `Config.refresh_s`); of several, the ref of the URI itself counts first, then the nearest directory
    above it. Refs with patterns, and those of another revision or origin, don't count. Of a URI that has a mirror and its original place,
    both are looked at and asked in their order.
    """

    _store: Store

    @abstractmethod
    def _origins(self, asked: tuple[StorageUri, UriSecrets]) -> Sequence[str]:
        """Those that a URI can come from, in turn."""

    @abstractmethod
    def _listed(self, asked: tuple[StorageUri, UriSecrets], cancel: Cancellation) -> Listing:
        """What the first of them says that has it, and can serve."""

    @abstractmethod
    def _fresh(self, ref: RefHead) -> bool:
        """Whether it needs no asking."""

    @contextmanager
    def cached_file(self, uri: str, *, offline: bool = False) -> Iterator[Path | None]:
        """A file that is here, held for the block; None if it is not, or not fresh. Asks no origin.

        Args:
            offline: of whatever age.

        Raises:
            InvalidUri, UnknownScheme.
        """
        for covering in self._covering(uri, offline):
            path = _path_in(covering)
            if path is None:
                continue
            with ExitStack() as held:
                try:
                    snapshot = held.enter_context(self._store.hold(covering.ref.manifest, holder="file"))
                except NotCached:
                    continue
                yield snapshot.path / path
            return
        yield None

    def entries(self, uri: str, *, offline: bool = False, cancel: Cancellation | None = None) -> tuple[FileEntry, ...]:
        """Every file under a URI, of whatever depth, archives as the files that they are: from a snapshot that is here if that is
        fresh, else as the origin lists them. Fetches none.

        Args:
            offline: from a snapshot of whatever age; no origin is asked.

        Raises:
            NotCached: offline, and nothing of it is here.
            NotFound, AccessDenied, Unavailable, InvalidUri, UnknownScheme, UnsafePath, ProtocolViolation.
        """
        for covering in self._covering(uri, offline):
            below = f"{covering.relative}/" if covering.relative else ""
            path = _path_in(covering)
            found = tuple(
                FileEntry("" if file.path == path else file.path.removeprefix(below), file.size_bytes, file.sha256.hex)
                for file in covering.ref.files
                if file.path == path or (path is None and file.path.startswith(below))
            )
            if found and self._store.snapshot(covering.ref.manifest) is not None:
                return found
        parsed, secrets = parse_uri(uri)
        if offline:
            raise NotCached(f"nothing of `{parsed}` is cached, and this call may not ask its origin", address=str(parsed))
        as_it_is = replace(parsed, unpack=False)
        listing = self._listed((as_it_is, secrets), cancel or Cancellation())
        stated = {file.path: next((item.hex for item in file.digests if item.algorithm == "sha256"), None) for file in listing.files}
        if _is_file(parsed, [file.path for file in listing.files]):
            return (FileEntry("", listing.files[0].size_bytes, stated[listing.files[0].path]),)
        return tuple(FileEntry(file.path, file.size_bytes, stated[file.path]) for file in listing.files)

    def _covering(self, uri: str, of_any_age: bool) -> Iterator[_Covering]:
        asked = parse_uri(uri)
        origins = self._origins(asked)
        for place, relative in _places(asked[0]):
            for key in (RefKey(str(place), origin) for origin in origins):
                head = self._store.head(key)
                if head is not None and (of_any_age or self._fresh(head)) and (ref := self._store.ref(key)) is not None:
                    yield _Covering(ref, relative)


def _places(uri: StorageUri) -> Iterator[tuple[StorageUri, str]]:
    """The URI itself and every directory above it, nearest first, with the path from there."""
    yield uri, ""
    if uri.scheme in _WITHOUT_PARENTS or uri.include or uri.exclude or uri.digest is not None or uri.query:
        return
    parts = uri.path.split("/")
    for count in range(len(parts) - 1, 1 if uri.scheme == "file" else -1, -1):
        yield replace(uri, path="/".join(parts[:count]), unpack=True), "/".join(parts[count:])


def _path_in(covering: _Covering) -> str | None:
    """The path of the file in the snapshot; None if the URI is no file of it."""
    paths = [file.path for file in covering.ref.files]
    if covering.relative:
        return covering.relative if covering.relative in paths else None
    parsed, _ = parse_uri(covering.ref.key.uri)
    return paths[0] if _is_file(parsed, paths) else None


def _is_file(uri: StorageUri, paths: list[str]) -> bool:
    """Whether this URI, which has these files, is a file itself. A directory that holds nothing but a file of its own name is taken
    for that file."""
    return len(paths) == 1 and (uri.scheme in _WITHOUT_PARENTS or uri.path.rpartition("/")[2] == paths[0])
