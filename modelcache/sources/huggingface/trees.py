"""What a commit holds: the hub's listing of it, checked. A commit never changes, so its listing is kept in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from modelcache.abc.source import RemoteFile
from modelcache.digest import Algorithm, Digest
from modelcache.errors import InvalidUri, NotFound, ProtocolViolation
from modelcache.patience import Cancellation
from modelcache.sources.huggingface.hub import Hub
from modelcache.sources.huggingface.location import FileLocation

MAX_FILES = 100_000
"""Under one URI, as for S3. The largest model repositories have some thousand."""
MAX_NAMES_CHARACTERS = 32 << 20
"""Of all names of one listing, which is in memory as a whole: some 300 each of `MAX_FILES`."""
MAX_KEPT_TREES = 16
MAX_KEPT_FILES = 10_000
"""A larger listing is asked for each time. At some 500 bytes a file, 80 MB in all is the most; usual are some 100 KB."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The files that a path stands for.

    Attributes:
        single: the path is a file; else it is a folder.
        files: with their whole paths in the repository.
    """

    single: bool
    files: tuple[RemoteFile, ...]


class Trees:
    """Listings of one hub as one identity. Safe for many threads."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, str], Tree] = OrderedDict()

    def of(self, repo: str, commit: str, path: str, address: str, cancel: Cancellation) -> Tree:
        """What `path` (empty: everything) is at a commit. Raises: as `Source.list`."""
        key = (repo, commit, path)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept
        tree = _Reading(self._hub, repo, commit, address, cancel).tree(path)
        if len(tree.files) <= MAX_KEPT_FILES:
            with self._lock:
                self._kept[key] = tree
                while len(self._kept) > MAX_KEPT_TREES:
                    self._kept.popitem(last=False)
        return tree


@dataclass(frozen=True, slots=True)
class _Reading:
    """One listing being asked for."""

    hub: Hub
    repo: str
    commit: str
    address: str
    cancel: Cancellation

    def tree(self, path: str) -> Tree:
        try:
            files = self._files(path, recursive=True)
        except NotFound:
            if not path:
                raise
            files = []  # the hub lists folders only; is it a file of the one above?
        if not files and path:
            files = [file for file in self._files(path.rpartition("/")[0], recursive=False) if file.path == path]
            if not files:
                raise NotFound(f"nothing of this name in `{self.repo}` at {self.commit}", address=self.address)
        single = len(files) == 1 and files[0].path == path
        return Tree(single, tuple(files))

    def _files(self, folder: str, *, recursive: bool) -> list[RemoteFile]:
        files, characters = [], 0
        for entry in self.hub.tree(self.repo, self.commit, folder, recursive=recursive, address=self.address, cancel=self.cancel):
            file = self._file(entry)
            if file is None:
                continue
            if folder and file.path != folder and not file.path.startswith(f"{folder}/"):
                raise ProtocolViolation("the hub lists a file outside of the folder", address=self.address, got=ascii(file.path[:300]))
            files.append(file)
            characters += len(file.path)
            if len(files) > MAX_FILES or characters > MAX_NAMES_CHARACTERS:
                raise InvalidUri(
                    f"over {MAX_FILES:,} files, or {MAX_NAMES_CHARACTERS:,} characters of their names, are under one URI",
                    address=self.address,
                    hint="name a folder further down",
                )
        return files

    def _file(self, entry: object) -> RemoteFile | None:
        """A file as the hub describes it; None: a folder."""
        fields = entry if isinstance(entry, dict) else {}
        if fields.get("type") == "directory":
            return None
        path, object_id = fields.get("path"), fields.get("oid")
        if fields.get("type") != "file" or not isinstance(path, str) or not isinstance(object_id, str):
            raise self._unreadable("an entry without type, path or object id")
        lfs = fields.get("lfs")
        size_bytes, digests, validator = self._content(fields, object_id)
        if lfs is not None:
            size_bytes, digests, validator = self._linked(lfs)
        return RemoteFile(path, size_bytes, FileLocation(self.repo, self.commit, path).locator, validator, digests)

    def _content(self, fields: Mapping[str, object], object_id: str) -> tuple[int, tuple[Digest, ...], str]:
        """Of a file that is kept in git itself. The object id of one that isn't (`xetHash`) names a pointer, not its bytes."""
        digest = self._digest(Algorithm.GIT_SHA1, object_id)
        return self._size(fields.get("size")), () if fields.get("xetHash") else (digest,), object_id

    def _linked(self, lfs: object) -> tuple[int, tuple[Digest, ...], str]:
        """Of a file that git holds a pointer to (LFS; Xet's are described the same way)."""
        if not isinstance(lfs, dict) or not isinstance(lfs.get("oid"), str):
            raise self._unreadable("an LFS file without object id")
        digest = self._digest(Algorithm.SHA256, lfs["oid"].removeprefix("sha256:"))
        return self._size(lfs.get("size")), (digest,), digest.hex

    def _size(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise self._unreadable("a file without size")
        return value

    def _digest(self, algorithm: Algorithm, text: str) -> Digest:
        try:
            return Digest(algorithm, text)
        except InvalidUri:
            raise self._unreadable(f"an object id that is no {algorithm}") from None

    def _unreadable(self, what: str) -> ProtocolViolation:
        return ProtocolViolation(f"the hub's listing can't be read ({what})", address=self.address)
