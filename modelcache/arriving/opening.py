"""What a source of tensors names, opened: files that are here, or a model that arrives."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from modelcache.arriving.arrival import Arrival
from modelcache.arriving.checkpoint import ArrivingFolder
from modelcache.arriving.company import Company, gathered
from modelcache.cache import ModelCache
from modelcache.errors import BadCheckpoint, InvalidUri
from modelcache.fetch.begun import Begun
from modelcache.loader.brought import Bringing
from modelcache.loader.checkpoint import Checkpoint, Order, Shard, open_checkpoint
from modelcache.loader.files import Opener
from modelcache.loader.group import Member
from modelcache.loader.plan import EXTENT_BYTES, Destination, Extent, plan
from modelcache.loader.report import LoadReport
from modelcache.loader.shard_file import ShardFile
from modelcache.patience import Cancellation
from modelcache.store.layout import FIXED_MTIME_S
from modelcache.units import MIB

ARRIVING_EXTENT_BYTES = 32 * MIB
"""Of a model that arrives: a tensor is handed out when its extent is here, and a wire of 100 MB/s brings so much in a third of a second."""


@dataclass(frozen=True, slots=True)
class How:
    """How a source is opened.

    Attributes:
        may_map: None: only files that are certain to stay as they are.
        verified_only: of a model that arrives, no byte of a file before all of it is verified.
        in_host: its tensors are read whole into host memory: what arrives is received there, and goes around the page cache. Else it
            goes through it, because it is read from there.
        keeps_all: who loads it keeps every tensor. Memory for all is needed anyway: all files of a model that arrives are received at the
            same time, and not only what comes next.
    """

    may_map: bool | None = None
    verified_only: bool = False
    in_host: bool = False
    keeps_all: bool = False

    @property
    def reads_next(self) -> bool:
        """Whether files are read when they are here."""
        return self.verified_only or not self.in_host

    @property
    def all_at_once(self) -> bool:
        """Whether all of a model that arrives is asked for at the beginning."""
        return self.keeps_all and not self.reads_next


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint whose headers were read, and how its files are opened for their tensors, and read ahead."""

    checkpoint: Checkpoint
    open_file: Opener
    arrival: Arrival | None = None
    company: Company | None = None
    all_at_once: bool = False
    may_map: bool = True

    @property
    def bringing(self) -> Bringing | None:
        """How a group has it from one of its ranks; None: this process has the files."""
        return None if self.company is None else self.company.bringing(ARRIVING_EXTENT_BYTES, may_map=self.may_map)

    def plan(self, names: Sequence[str], order: Order, destination: Destination) -> Sequence[Extent]:
        """What is read for these tensors, and in which order."""
        extent_bytes = EXTENT_BYTES if self.arrival is None else ARRIVING_EXTENT_BYTES
        return plan(self.checkpoint, names, order=order, destination=destination, extent_bytes=extent_bytes)

    def finish(self, seen: LoadReport) -> None:
        """After the last tensor of a model that arrives: wait until all of it is verified, and what was handed out with it.

        Raises:
            DigestMismatch: something else was handed out. What `ModelCache.ensure` raises.
        """
        if self.arrival is not None:
            started_s = time.monotonic()
            (self.company or self.arrival).finish()
            seen.verified_s += time.monotonic() - started_s


def open_source(
    source: str | os.PathLike[str],
    how: How,
    *,
    cache: ModelCache | None,
    held: ExitStack,
    cancel: Cancellation | None,
    seen: LoadReport,
    member: Member | None = None,
) -> Opened:
    """Find what a source names, or begin to fetch it; it is held until `held` ends.

    Args:
        member: this rank of a group that opens the same.

    Raises:
        InvalidUri: an empty text. What `open_checkpoint`, `ModelCache.ensure` and `gathered` raise.
    """
    started_s = time.monotonic()
    text = os.fspath(source)
    arrival: Arrival | None = None
    company: Company | None = None
    if not text:
        raise InvalidUri("tensors of nothing are asked for: the source is an empty text", hint="a URI, a file, a directory or an index")
    found: Begun | Path = Path(text)
    if "://" in text:
        used = cache or held.enter_context(ModelCache())
        arrival = held.enter_context(Arrival(used, text, cancel or Cancellation(), reads_next=how.reads_next))
        found, company = gathered(arrival, member, verified_only=how.verified_only, held=held, cancel=cancel or Cancellation())
    seen.fetched_s += time.monotonic() - started_s
    started_s = time.monotonic()
    if isinstance(found, Begun):
        assert arrival is not None
        opened = _arriving(arrival, company, found, how, cancel or Cancellation())
    else:
        opened = _here(found, how)
    seen.opened_s += time.monotonic() - started_s
    return opened


def _arriving(arrival: Arrival, company: Company | None, begun: Begun, how: How, cancel: Cancellation) -> Opened:
    folder = ArrivingFolder(arrival, begun, cancel, how.verified_only, may_map=how.may_map is not False)
    try:
        checkpoint = folder.open_checkpoint() if company is None else company.open_checkpoint(folder)
    except BadCheckpoint:
        return _here(arrival.published(), how)  # whether headers make sense is said of verified ones alone
    return Opened(checkpoint, folder.open_file, arrival, company, how.all_at_once, how.may_map is not False)


def _here(path: Path, how: How) -> Opened:
    return Opened(open_checkpoint(path), _opener(how.may_map))


def _opener(may_map: bool | None) -> Opener:
    """Of files that are here."""

    def open_file(shard: Shard, cancel: Cancellation) -> ShardFile:
        stays_whole = _is_published(shard.path) if may_map is None else may_map
        return ShardFile(shard.path, shard.header.file_bytes, stays_whole=stays_whole, stamp=shard.stamp)

    return open_file


def _is_published(path: Path) -> bool:
    """Whether a file bears the marks of one that a store published, wherever it is mounted: nobody may write it, and its fixed time.

    Such a file never changes; the store itself only unlinks it, which takes no page from who has it mapped.
    """
    try:
        found = os.stat(path)
    except OSError:
        return False  # who opens it says what is wrong
    return found.st_mode & 0o222 == 0 and found.st_mtime_ns == FIXED_MTIME_S * 10**9
