"""Checkpoints into tensors: read several pieces ahead, hand out in order, say how the bytes came."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import chain

import torch

from modelcache.errors import NoDeviceMemory
from modelcache.loader.checkpoint import Checkpoint, Order
from modelcache.loader.devices import expect_device, open_staging, placed, release_pinned, threads_for
from modelcache.loader.files import Opener
from modelcache.loader.landing import Staging
from modelcache.loader.memory import HostMemory
from modelcache.loader.options import DEFAULT_OPTIONS, DeviceOptions
from modelcache.loader.placement import Device, Placement
from modelcache.loader.plan import Extent, plan
from modelcache.loader.reader import Reader, Reading
from modelcache.loader.report import LoadReport
from modelcache.loader.shard_file import open_shard
from modelcache.loader.tensors import is_number
from modelcache.patience import Cancellation
from modelcache.units import GIB

AHEAD_BYTES = GIB
"""Read beyond the extent that is handed out; exceeded by at most one extent. What is mapped doesn't count: behind it the disk is read."""
AHEAD_EXTENTS = 64
"""And no more than so many: where single tensors are wanted, an extent may be a page."""
IDLE_LIMIT_BYTES = GIB
"""Of memory that is kept for the next load: what came back from tensors that are gone."""

memory = HostMemory(IDLE_LIMIT_BYTES)
"""Of this process."""


@dataclass(frozen=True)
class Wishes:
    """How tensors are wanted.

    Attributes:
        device: None: host memory. A mapping: by name or shell pattern (`Placement`).
        dtype: that floating-point tensors are cast to, on their device; None: as they are. Others keep theirs, and packed ones (F4).
        order: `given`: as the names come. Reads are as large as names follow each other in the files, so a scattered order costs a
            request for each tensor, and up to 8 KiB that is read twice; `file` reads everything in large pieces.
        options: of loads to GPUs.
        apart: by name; tensors for which it differs share no memory, so that one is not kept for the other's sake. None: all may share.
    """

    device: Device | Mapping[str, Device] | None = None
    dtype: torch.dtype | None = None
    order: Order = "file"
    options: DeviceOptions = DEFAULT_OPTIONS
    apart: Callable[[str], object] | None = None
    placement: Placement = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises TypeError: a dtype that weights are not cast to. ValueError: there is no such order. NoSuchDevice."""
        if self.order not in ("file", "given"):
            raise ValueError(f"tensors come in order `file` or `given`, and not `{self.order}`")
        if self.dtype is not None and not isinstance(self.dtype, torch.dtype):
            raise TypeError(f"a dtype is one of torch's (torch.float16), and not {self.dtype!r}")
        if self.dtype is not None and not is_number(self.dtype):
            raise TypeError(f"tensors are cast to floating-point types, and not to {self.dtype}")
        object.__setattr__(self, "placement", Placement(self.device))
        for device in self.placement.devices:
            expect_device(device)

    def destination_of(self, name: str) -> object:
        """Tensors of different destinations are in different extents."""
        device = self.placement.device_of(name)
        return device if self.apart is None else (device, self.apart(name))


def stream_tensors(
    checkpoint: Checkpoint,
    names: Sequence[str],
    wishes: Wishes,
    *,
    extents: Sequence[Extent] | None = None,
    open_file: Opener = open_shard,
    all_at_once: bool = False,
    report: LoadReport | None = None,
    cancel: Cancellation | None = None,
    progress: Callable[[int], None] | None = None,
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """The tensors of these names, in file order or as given. Reads on while the consumer works.

    Args:
        names: each once.
        extents: that are read for them, in this order; the tensors in them are handed out. None: those that hold these tensors whole.
        open_file: every file of the checkpoint that a name is in, before the first is read.
        all_at_once: everything is asked for at the beginning, for a consumer who keeps it all; else AHEAD_BYTES beyond what is handed out.
        progress: called with the bytes of all tensors handed out so far.

    Raises:
        BadCheckpoint: a file changed or vanished since its header was read, or torch has no such dtype.
        StoreFault: the disk failed. MemoryError. NoDeviceMemory, DeviceFault. Cancelled.
        FileFault: a file can't be opened. What `open_file`'s files raise.
    """
    seen = report or LoadReport()
    told = 0
    if extents is None:
        extents = plan(checkpoint, names, order=wishes.order, destination=wishes.destination_of)
    seen.wanted_bytes += sum(entry.span.size_bytes for extent in extents for entry in extent.tensors)
    for reading in _readings(checkpoint, extents, wishes, open_file, all_at_once, cancel or Cancellation(), seen):
        for entry in reading.extent.tensors:
            started_s = time.monotonic()
            tensor = placed(reading.landing, entry, wishes.placement.device_of(entry.name), wishes.dtype)
            given_s = time.monotonic()
            seen.placed_s += given_s - started_s
            seen.tensors += 1
            seen.tensor_bytes += entry.span.size_bytes
            told += entry.span.size_bytes
            yield entry.name, tensor
            del tensor
            seen.consumed_s += time.monotonic() - given_s
        if progress is not None:
            progress(told)
        del reading, entry  # its memory, before more is asked for


def _readings(
    checkpoint: Checkpoint,
    extents: Sequence[Extent],
    wishes: Wishes,
    open_file: Opener,
    all_at_once: bool,
    cancel: Cancellation,
    seen: LoadReport,
) -> Iterator[Reading]:
    """Every extent once it is read. Keeps no reference to what was handed out."""
    started_s = time.monotonic()
    own = Cancellation()
    place = wishes.placement.device_of
    coming: Iterator[Extent] = iter(extents)
    under_way: deque[Reading] = deque()
    with ExitStack() as ends:
        ends.enter_context(cancel.on_cancel(own.cancel))
        files = {shard: ends.enter_context(closing(open_file(checkpoint.shards[shard], own))) for shard in _shards(extents)}
        stagings = _Stagings(ends.enter_context(ExitStack()), own, wishes.options)  # before the reader: closed when no read runs any more
        reader = ends.enter_context(Reader(own, threads_for({place(extent.tensors[0].name) for extent in extents})))
        seen.opened_s += time.monotonic() - started_s
        while True:
            own.check()
            started_s = time.monotonic()
            while (all_at_once or _wants_more(under_way)) and (extent := next(coming, None)) is not None:
                try:
                    under_way.append(reader.start(extent, files[extent.shard], stagings.of(place(extent.tensors[0].name))))
                except (MemoryError, NoDeviceMemory):
                    if not under_way:
                        raise
                    coming = chain([extent], coming)  # once what was read ahead is handed out, and maybe dropped
                    break
            if not under_way:
                return
            reading = under_way.popleft()
            seen.read_bytes.update(reading.wait())
            seen.waited_s += time.monotonic() - started_s
            yield reading
            del reading


def _wants_more(under_way: Sequence[Reading]) -> bool:
    return len(under_way) < AHEAD_EXTENTS and sum(reading.read_bytes for reading in under_way) < AHEAD_BYTES


def _shards(extents: Sequence[Extent]) -> Sequence[int]:
    return sorted({extent.shard for extent in extents})


class _Stagings:
    """Of the devices that a load brings tensors to; each is opened with the first, and closed after the last read."""

    def __init__(self, ends: ExitStack, cancel: Cancellation, options: DeviceOptions) -> None:
        self._ends = ends
        self._cancel = cancel
        self._options = options
        self._by_device: dict[torch.device, Staging] = {}

    def of(self, device: torch.device) -> Staging:
        staging = self._by_device.get(device)
        if staging is None:
            opened = open_staging(device, memory, self._cancel, self._options)
            staging = self._by_device[device] = self._ends.enter_context(closing(opened))
        return staging


def release_memory() -> int:
    """Give back what earlier loads left for the next one, pinned memory, too; how many bytes. Raises DeviceFault."""
    return memory.release() + release_pinned()
