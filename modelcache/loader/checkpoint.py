"""A checkpoint on disk: one safetensors file, or shards with or without an index. Which tensor lies in which file, and where."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from modelcache.errors import BadCheckpoint, FileFault, NoSuchTensor, NotFound, StoreFault
from modelcache.loader import strict_json
from modelcache.loader.header import LENGTH_BYTES, Header, TensorEntry, header_bytes, parse_header

INDEX_SUFFIX = ".safetensors.index.json"
SUFFIX = ".safetensors"
NO_FILES_HINT = "only safetensors are read: name a place that has some, or its folder that does"
Order = Literal["file", "given"]
"""How tensors are read and handed out."""
MAX_INDEX_BYTES = 100_000_000
"""As of a header; the largest published one (hundreds of thousands of tensors) has some tens of MB."""

_UNUSABLE = (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM)
"""Names, kinds and modes of files; anything else the disk is to blame for."""


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Raises FileFault: this process can't read such a file; StoreFault: the disk failed; both in place of an OSError of the block."""
    try:
        yield
    except OSError as error:
        kind = FileFault if error.errno in _UNUSABLE else StoreFault
        raise kind(f"the file can't be read ({error.strerror})", address=str(path)) from error


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Which file it was, and when it was changed: a file with another stamp may have other bytes."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int

    def __str__(self) -> str:
        return f"{self.size_bytes} bytes, inode {self.inode}, changed at {self.mtime_ns / 1e9:.3f} s"

    @classmethod
    def of(cls, fd: int) -> FileStamp:
        """Raises OSError."""
        found = os.fstat(fd)
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a checkpoint.

    Attributes:
        stamp: of the file when its header was read; None: nobody looked.
    """

    path: Path
    header: Header = field(repr=False)
    stamp: FileStamp | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What there is to load. Headers were read, and nothing else.

    Attributes:
        shards: in the order of their names.
        place: tensor name → (number of its shard, where it is).
    """

    root: Path
    shards: tuple[Shard, ...]
    place: Mapping[str, tuple[int, TensorEntry]] = field(repr=False)

    @property
    def size_bytes(self) -> int:
        """Of all tensors."""
        return sum(entry.span.size_bytes for _, entry in self.place.values())

    def find(self, name: str) -> tuple[int, TensorEntry]:
        """Number of its shard, and where it is. Raises NoSuchTensor."""
        found = self.place.get(name)
        if found is None:
            raise NoSuchTensor(f"no tensor is named `{name}`", address=str(self.root), got=name)
        return found

    def select(self, names: Iterable[str] | None, *, order: Order = "file") -> Sequence[str]:
        """Names of tensors, each once; `names` may hold shell patterns (`model.layers.0.*`), and a text is one of them. None: all.

        Args:
            order: `file`: as they lie in the files. `given`: as `names` has them, those of one pattern as they lie.

        Raises:
            NoSuchTensor: a name or pattern fits none.
        """
        if names is None:
            return list(self.place)
        chosen: dict[str, None] = {}
        for name in [names] if isinstance(names, str) else names:
            found = [name] if name in self.place else [each for each in self.place if fnmatchcase(each, name)]
            if not found:
                raise NoSuchTensor(f"no tensor is named `{name}`", address=str(self.root), got=name)
            chosen.update(dict.fromkeys(found))
        return list(chosen) if order == "given" else [name for name in self.place if name in chosen]


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the headers of a safetensors file, of the shards that an index file names, or of those in a directory.

    In a directory an index (`*.safetensors.index.json`) names the shards, and must agree with them; without one they are all its
    `*.safetensors` files.

    Raises:
        NotFound: no safetensors there.
        BadCheckpoint: an index or header that makes no sense, a tensor that two shards have.
        FileFault: a file can't be read by this process. StoreFault: the disk failed.
    """
    with told_of(path):
        return _opened(path)


def _opened(path: Path) -> Checkpoint:
    is_index = path.name.endswith(INDEX_SUFFIX) and path.is_file()
    if path.is_dir() or is_index:
        index = _index_in(path) if is_index else _index(path)
        path = path.parent if is_index else path
        names = sorted(set(index.values())) if index is not None else sorted(each.name for each in path.glob(f"*{SUFFIX}"))
        if not names and index is not None:
            raise BadCheckpoint("the index names no shard", address=str(path))
        if not names:
            raise NotFound("there are no safetensors files", address=str(path), hint=NO_FILES_HINT)
        shards = [_shard(path / name, wanted_by_index=index is not None) for name in names]
    else:
        index, shards = None, [_shard(path, wanted_by_index=False)]
    return assembled(path, shards, index)


def assembled(root: Path, shards: Sequence[Shard], index: Mapping[str, str] | None) -> Checkpoint:
    """A checkpoint of these shards. Raises BadCheckpoint: two have a tensor of one name, or `index` does not agree with them."""
    place: dict[str, tuple[int, TensorEntry]] = {}
    for number, shard in enumerate(shards):
        for entry in shard.header.tensors:
            if entry.name in place:
                first = shards[place[entry.name][0]].path.name
                raise BadCheckpoint(f"two shards have a tensor `{entry.name}`", address=str(root), expected=first, got=shard.path.name)
            place[entry.name] = number, entry
    if index is not None:
        _check_index(root, index, shards, place)
    return Checkpoint(root, tuple(shards), place)


def read_header(fd: int, file_bytes: int, address: str) -> Header:
    """The header of an open file. Raises BadCheckpoint, OSError."""
    size_bytes = header_bytes(_pread(fd, LENGTH_BYTES, address, wanted=min(LENGTH_BYTES, file_bytes)), file_bytes, address)
    return parse_header(_pread(fd, size_bytes, address, wanted=size_bytes), file_bytes, address)


def _shard(path: Path, *, wanted_by_index: bool) -> Shard:
    with told_of(path):
        try:
            file = io.FileIO(path)
        except FileNotFoundError:
            if wanted_by_index:
                raise BadCheckpoint("the index names a shard that is missing", address=str(path)) from None
            hint = "check the spelling; a model of a store is named by its URI, or by the directory that `modelcache path NAME` prints"
            raise NotFound("there is no such file", address=str(path), hint=hint) from None
        with file:
            stamp = FileStamp.of(file.fileno())
            return Shard(path, read_header(file.fileno(), stamp.size_bytes, str(path)), stamp)


def _pread(fd: int, size_bytes: int, address: str, *, wanted: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        part = os.pread(fd, size_bytes - len(data), len(data))
        if not part:
            break
        data += part
    if len(data) < wanted:
        raise BadCheckpoint("the file shrank while its header was read", address=address, expected=str(wanted), got=str(len(data)))
    return data


def _index(root: Path) -> Mapping[str, str] | None:
    """Tensor name → file name, as the directory's index has it; None: it has none."""
    found = sorted(root.glob(f"*{INDEX_SUFFIX}"))
    if not found:
        return None
    if len(found) > 1:
        shown = ", ".join(each.name for each in found)
        raise BadCheckpoint("the directory has several checkpoints", address=str(root), got=shown, hint="name one file of them")
    return _index_in(found[0])


def _index_in(path: Path) -> Mapping[str, str]:
    """As one index file has it. Raises BadCheckpoint."""
    with told_of(path):
        check_index_size(path.stat().st_size, str(path))
        return parse_index(path.read_bytes(), str(path))


def check_index_size(size_bytes: int, address: str) -> None:
    """Raises BadCheckpoint: no index is so large."""
    if size_bytes > MAX_INDEX_BYTES:
        raise BadCheckpoint("the index is too large", address=address, expected=str(MAX_INDEX_BYTES), got=str(size_bytes))


def parse_index(data: bytes, address: str) -> Mapping[str, str]:
    """Tensor name → file name, as an index has it. Raises BadCheckpoint."""
    try:
        value: Any = strict_json.loads(data)
        weight_map = value["weight_map"]
        if not isinstance(weight_map, dict) or not all(isinstance(each, str) for each in weight_map.values()):
            raise TypeError("weight_map is not an object of strings")
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"the index is not one ({error})", address=address) from None
    for name in set(weight_map.values()):
        if not name.endswith(SUFFIX) or Path(name).name != name or "\0" in name or not _is_text(name):
            raise BadCheckpoint("the index names a file that is no shard beside it", address=address, got=name[:100])
    return dict(weight_map)


def _is_text(name: str) -> bool:
    """JSON can spell halves of surrogate pairs, which no file's name holds."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check_index(root: Path, index: Mapping[str, str], shards: Sequence[Shard], place: Mapping[str, tuple[int, TensorEntry]]) -> None:
    for name, file in index.items():
        found = place.get(name)
        if found is None or shards[found[0]].path.name != file:
            got = "no shard" if found is None else shards[found[0]].path.name
            raise BadCheckpoint(f"tensor `{name}` is not where the index has it", address=str(root), expected=file, got=got)
    if more := next((name for name in place if name not in index), None):
        raise BadCheckpoint(f"the index doesn't know tensor `{more}`", address=str(root), got=shards[place[more][0]].path.name)
