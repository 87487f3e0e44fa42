"""What the fake hub holds: repositories with their commits, as git and LFS would name their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

LFS_BYTES = 10_000
"""Files of this size or more are kept in LFS. (At the real Hub it is 10 MB, or what `.gitattributes` says.)"""


@dataclass(frozen=True)
class HubFile:
    """One file's bytes and the names that git, LFS and Xet give them."""

    data: bytes = field(repr=False)
    xet: bool = False

    @property
    def lfs(self) -> bool:
        return len(self.data) >= LFS_BYTES

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def object_id(self) -> str:
        """Of what git itself holds: the bytes, or a pointer to them."""
        held = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0%s" % (len(held), held)).hexdigest()

    @property
    def pointer(self) -> bytes:
        """The LFS pointer file (git-lfs, docs/spec.md)."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.object_id

    def entry(self, path: str) -> dict[str, object]:
        """As the tree endpoint describes it."""
        described: dict[str, object] = {"type": "file", "oid": self.object_id, "size": len(self.data), "path": path}
        if self.lfs:
            described["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": len(self.pointer)}
            if self.xet:
                described["xetHash"] = hashlib.sha256(b"xet" + self.data).hexdigest()
        return described


class HubRepository:
    """One model repository.

    Attributes:
        gated: anybody may list it, and only `readers` may read it.
        private: only `readers` may know of it.
        disabled: the hub's owners closed it.
        readers: tokens that may read it where not everybody may.
        xet: its LFS files are kept in Xet.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.gated = False
        self.private = False
        self.disabled = False
        self.xet = False
        self.readers: set[str] = set()
        self.commits: dict[str, Mapping[str, HubFile]] = {}
        self.refs: dict[str, str] = {}
        self._made = 0

    def commit(self, changes: Mapping[str, bytes | None], *, branch: str = "main") -> str:
        """Add files, replace them or (None) remove them; the new commit's id, which the branch names from now on."""
        files = dict(self.commits.get(self.refs.get(branch, ""), {}))
        for path, data in changes.items():
            if data is None:
                del files[path]
            else:
                files[path] = HubFile(data, self.xet)
        return self._add(files, branch)

    def squash(self, branch: str = "main") -> str:
        """Rewrite history: one commit with the branch's files, and all others are gone (`super_squash_history`)."""
        files = self.commits[self.refs[branch]]
        self.commits.clear()
        self.refs.clear()
        return self._add(files, branch)

    def at(self, revision: str) -> tuple[str, Mapping[str, HubFile]] | None:
        """The commit and the files of a branch, tag, `refs/pr/N` or commit."""
        commit = self.refs.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None

    def lfs_object(self, sha256: str) -> bytes | None:
        """Bytes that a commit still points to."""
        held = (file for files in self.commits.values() for file in files.values())
        return next((file.data for file in held if file.lfs and file.sha256 == sha256), None)

    def _add(self, files: Mapping[str, HubFile], branch: str) -> str:
        self._made += 1
        names = sorted(f"{path}\0{file.object_id}" for path, file in files.items())
        text = "\n".join([self.name, str(self._made), *names])
        commit = hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest()
        self.commits[commit] = dict(files)
        self.refs[branch] = commit
        return commit


def tree_entries(files: Mapping[str, HubFile], folder: str, *, recursive: bool) -> list[dict[str, object]] | None:
    """What the tree endpoint lists of a folder, folders included; None: there is no such folder."""
    prefix = f"{folder}/" if folder else ""
    below = {path: file for path, file in files.items() if path.startswith(prefix)}
    if folder and not below:
        return None
    folders = {path[:at] for path in below for at, char in enumerate(path) if char == "/" and at >= len(prefix)}
    listed: dict[str, dict[str, object]] = {each: {"type": "directory", "oid": "0" * 40, "size": 0, "path": each} for each in folders}
    listed |= {path: file.entry(path) for path, file in below.items()}
    return [listed[path] for path in sorted(listed) if recursive or "/" not in path[len(prefix) :]]
