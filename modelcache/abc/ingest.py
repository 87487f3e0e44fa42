"""A model on its way into a store: its files being filled, and the tree that becomes a snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from modelcache.abc.snapshot import Ref, Snapshot
from modelcache.chunks import ChunkTable
from modelcache.digest import Digest
from modelcache.manifest import Manifest
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange, RangeSet


class Route(StrEnum):
    """How bytes reach the disk: through the page cache (someone reads them next) or around it."""

    BUFFERED = "buffered"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class IngestFile:
    """One file that an ingest is to end up with.

    Attributes:
        version: names these exact bytes at their origin (origin, locator and validator in one text); a journal of an
            earlier ingest counts only for the same version. Empty: never resumed.
        sha256: known before the fetch and allowed to be used; the blob is linked if it is here. None: not known.
        compartment: that of the ref: bytes are shared with files of the same one alone.
    """

    path: str
    size_bytes: int
    version: str
    sha256: Digest | None
    compartment: str = ""

    @property
    def identity(self) -> str:
        """What says, before they are fetched, that two files have the same bytes and may share them; empty if nothing does."""
        same = self.version if self.sha256 is None else str(self.sha256)
        return f"{self.compartment}\0{same}" if same and self.compartment else same


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What can be seen of a file that another ingest brings, of this process or of another one.

    Attributes:
        here_bytes: how much of it that ingest has marked.
        sha256: once its blob is here: `IncomingFile.link` takes it.
        pulse: changes whenever the ingest that brings it gets on with any of its files.
    """

    here_bytes: int
    sha256: Digest | None
    pulse: tuple[int, ...]


class IncomingFile(Protocol):
    """A file of an ingest, being filled. Ranges may be written by many threads; each byte by one of them.

    Life: `write` puts bytes down, `mark` says a chunk of them is whole, `complete` publishes the file as a blob. Nobody else
    sees it before that. A crash keeps marked chunks as hints.
    """

    @property
    def path(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def sha256(self) -> Digest | None:
        """Set once the file is complete (held from the start, or after `complete`)."""
        ...

    @property
    def claimed(self) -> bool:
        """Whether it is for this ingest to bring the file. If not, another one does, and nothing may be written here."""
        ...

    @property
    def place(self) -> Path | None:
        """Where it may be opened once it is complete; moves when its ingest is published. None: it is in no file system."""
        ...

    def hints(self) -> Mapping[int, bytes]:
        """Chunk → xxh3-128 that an earlier, interrupted ingest journalled. True only if the disk still says so: check each."""
        ...

    def write(self, offset: int, data: memoryview, route: Route) -> None:
        """Write all of `data` at `offset`. DIRECT is a wish: a file system or alignment that can't falls back to BUFFERED.

        Raises:
            NoSpace: the disk filled up in spite of the reservation.
            StoreFault: EIO and the like.
        """
        ...

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with what was written at `offset`. Raises StoreFault if the file is shorter."""
        ...

    def mark(self, chunk: int, mark: bytes) -> None:
        """Chunk `chunk` is written and has this xxh3-128: journal it, and wake those who wait for its range."""
        ...

    def ranges(self) -> RangeSet:
        """Which ranges are here (marked or checked hints; the whole file once complete)? A copy."""
        ...

    def wait(self, span: ByteRange, timeout_s: float, cancel: Cancellation) -> bool:
        """Wait until `span` is here; False when the time is over first.

        Raises:
            Cancelled: by `cancel`, or because the ingest ended without this range.
        """
        ...

    def complete(self, sha256: Digest, table: ChunkTable) -> None:
        """All bytes are written and have this sha256: make them durable and publish them as a blob.

        If the blob is here already, this file becomes a link to it and its own bytes are given back.
        """
        ...

    def link(self, sha256: Digest) -> bool:
        """Become a link to this blob if it is here now (another fetch published it meanwhile), giving the room booked for this
        file back; False if it is not here, and then nothing changed. The size must agree."""
        ...

    def restart(self) -> None:
        """Forget every byte and mark (the final digest was wrong); the reservation stays."""
        ...


class Ingest(Protocol):
    """A model on its way in: a reserved, invisible tree. Owned by this process; ends by `publish`, `keep` or `discard`.

    Of all ingests of the store, whatever their process, one at a time has the *claim* on a file of one identity: it brings it,
    without waiting for anything that another has claimed, and the others link it when it is published. Claims end with their
    ingest, or with its process, whatever ended that; who has the next one goes on with what was left.
    """

    @property
    def id(self) -> str: ...

    @property
    def files(self) -> Sequence[IncomingFile]:
        """In the order of the IngestFiles asked for."""
        ...

    @property
    def reserved_bytes(self) -> int:
        """What was booked for the files that were not here and that nobody else brings."""
        ...

    def elsewhere(self, files: Sequence[IncomingFile]) -> list[Elsewhere]:
        """How far others are with these files that this ingest has no claim on."""
        ...

    def claim(self, files: Sequence[IncomingFile], *, anyway: bool = False) -> list[IncomingFile]:
        """Try to get the claims on these files; those of which this ingest has them now. Of these, some may turn out to be here
        (`sha256` is set); the others are to be booked before anything is written.

        `anyway`: take the others too, for they don't get on, or what they brought is not what is wanted. What they have written
        stays with them; what they say that the file became is not believed.
        """
        ...

    def book(self, files: Sequence[IncomingFile]) -> None:
        """Book room for these claimed files, and take over what ended ingests left of them: `hints` are new.

        Raises:
            NoSpace: as of `Store.ingest`.
        """
        ...

    def flush(self, files: Sequence[IncomingFile]) -> None:
        """Optional help: make these small complete-to-be files' data durable together (one syncfs) before their `complete`."""
        ...

    def complete(self, files: Sequence[tuple[IncomingFile, Digest, ChunkTable]]) -> None:
        """`flush`, then `IncomingFile.complete` of each, for a fraction of what they cost one by one. When it raises, some may be."""
        ...

    def publish(self, manifest: Manifest, ref: Ref) -> Snapshot:
        """Every file is complete: publish the tree as the snapshot of `manifest`, then the ref. Ends the ingest.

        Safe against another who publishes the same: the first tree stays, both get it.

        Raises:
            DamagedBlob: a blob that a file became was found damaged since (`verify`), and is out of service. The ingest has not
                ended: after `keep`, the next one of the same versions asks for that file alone.
        """
        ...

    def keep(self) -> None:
        """Stop here and keep what is marked for the next ingest of the same versions; room booked behind it is given back.
        Idempotent."""
        ...

    def discard(self) -> None:
        """Drop everything and give the room back. Idempotent."""
        ...
