"""A checkpoint whose files may still be on their way: its headers, which come first, and how its files are opened."""

from __future__ import annotations

import mmap
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from modelcache import chunks
from modelcache.arriving.arrival import Arrival
from modelcache.arriving.file import ArrivingFile
from modelcache.errors import BadCheckpoint, NotFound
from modelcache.fetch.begun import Begun
from modelcache.loader.checkpoint import INDEX_SUFFIX, NO_FILES_HINT, SUFFIX, Checkpoint, Shard, assembled, check_index_size, parse_index
from modelcache.loader.header import LENGTH_BYTES, header_bytes, parse_header
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.units import KIB

FIRST_BYTES = 64 * KIB
"""Of a file, read at once: the whole header of most, and within a chunk, which comes first."""
FIRST_WANTED_CHUNKS = 9
"""Of the first file: its header, and what is read as one after that."""


@dataclass(frozen=True, slots=True)
class ArrivingFolder:
    """The files of a model of which a fetch has begun.

    Attributes:
        verified_only: tensors are handed out file by file, as each is verified.
        may_map: files that are verified when they are read are mapped.
        first: by name, what was read of the beginning of files, or told by who read it: index and headers.
    """

    arrival: Arrival
    begun: Begun
    cancel: Cancellation
    verified_only: bool = False
    may_map: bool = True
    first: dict[str, bytes] = field(default_factory=dict, repr=False)
    _sizes: Mapping[str, int] = field(init=False, repr=False)
    _root: Path = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = {item.path: item.size_bytes for item in self.begun.listing.files if "/" not in item.path}
        place = next((item.place for item in self.begun.ingest.files if item.path in sizes), None)
        object.__setattr__(self, "_sizes", sizes)
        object.__setattr__(self, "_root", Path() if place is None else place.parent)

    @property
    def names(self) -> Collection[str]:
        """Of the files beside each other at its root."""
        return self._sizes.keys()

    def open_checkpoint(self, named: str | None = None) -> Checkpoint:
        """As of a directory that holds these files; waits for the index and the headers.

        Args:
            named: the file or index that is meant; None: the one index there, else all safetensors files.

        Raises:
            NotFound: there are no safetensors among them. BadCheckpoint. What `Arrival.later` raises.
        """
        self.want_first(named)
        index = self._index(named)
        names = [] if named is None or index is not None else [named]
        names = names or sorted(set(index.values()) if index is not None else self._shards(""))
        if not names:
            raise NotFound("there are no safetensors files", address=str(self.begun.listing.uri), hint=NO_FILES_HINT)
        for name in names:
            if name not in self._sizes:
                raise BadCheckpoint("the index names a shard that is missing", address=str(self._root / name))
        return assembled(self._root, [self._shard(name) for name in names], index)

    def open_file(self, shard: Shard, cancel: Cancellation) -> ArrivingFile:
        """An `Opener`."""
        return self._open(shard.path.name, cancel, verified_only=self.verified_only)

    def verified(self, name: str) -> bytes:
        """A small file, once all of it is verified. Raises what `Arrival.later` raises."""
        with closing(self._open(name, self.cancel, verified_only=True)) as file:
            return _first(file, self._sizes[name])

    def _open(self, name: str, cancel: Cancellation, *, verified_only: bool) -> ArrivingFile:
        return ArrivingFile(
            self.arrival,
            self.begun,
            self._root / name,
            self._sizes[name],
            cancel,
            verified_only=verified_only,
            may_map=self.may_map,
        )

    def want(self, names: Collection[str]) -> None:
        """These files, of a chunk at most each, are wanted before all that nobody has asked for yet."""
        for number, item in enumerate(self.begun.listing.files):
            if item.path in names:
                self.begun.fetch.want(number, 0, 1, now=True)

    def want_first(self, named: str | None = None) -> None:
        """What most will read first is wanted before the headers say so: else long spans of other files are under way when they do."""
        numbers = {item.path: number for number, item in enumerate(self.begun.listing.files)}
        stem = "" if named is None else named.removesuffix(INDEX_SUFFIX).removesuffix(SUFFIX)  # shards have the name of their index
        first = named if named in numbers and not named.endswith(INDEX_SUFFIX) else min(self._shards(stem), default=None)
        if first is not None:
            self.begun.fetch.want(numbers[first], 0, FIRST_WANTED_CHUNKS, now=True)

    def _shards(self, stem: str) -> Sequence[str]:
        return [name for name in self._sizes if name.endswith(SUFFIX) and name.startswith(stem)]

    def _index(self, named: str | None) -> Mapping[str, str] | None:
        """Tensor name → file name; None: there is none, or a file itself is meant."""
        found = sorted(name for name in self._sizes if name.endswith(INDEX_SUFFIX) and named in (None, name))
        if not found:
            return None
        if len(found) > 1:
            raise _several(self._root, found)
        address = str(self._root / found[0])
        check_index_size(self._sizes[found[0]], address)
        return parse_index(self._beginning(found[0], self._sizes[found[0]]), address)

    def _shard(self, name: str) -> Shard:
        size_bytes, address = self._sizes[name], str(self._root / name)
        data = self._beginning(name, min(FIRST_BYTES, chunks.CHUNK_BYTES, size_bytes))
        data = self._beginning(name, header_bytes(data[:LENGTH_BYTES], size_bytes, address))
        return Shard(self._root / name, parse_header(data, size_bytes, address))

    def _beginning(self, name: str, size_bytes: int) -> bytes:
        """So many bytes, once they are here."""
        data = self.first.get(name, b"")
        if len(data) < size_bytes:
            with closing(self._open(name, self.cancel, verified_only=False)) as file:
                data = self.first[name] = _first(file, size_bytes)
        return data[:size_bytes]


def _several(root: Path, names: Sequence[str]) -> BadCheckpoint:
    return BadCheckpoint("the directory has several checkpoints", address=str(root), got=", ".join(names), hint="name one file of them")


def _first(file: ArrivingFile, size_bytes: int) -> bytes:
    """The first bytes of a file, once they are here."""
    if size_bytes == 0:
        return b""
    view = memoryview(mmap.mmap(-1, -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE))
    file.read(ByteRange(0, size_bytes), view)
    return bytes(view[:size_bytes])
