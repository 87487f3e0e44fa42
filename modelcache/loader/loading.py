"""Checkpoints into tensors: read several pieces ahead, hand out in file order, say how the bytes came."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from modelcache.loader.checkpoint import Checkpoint
from modelcache.loader.memory import HostMemory
from modelcache.loader.plan import Extent, plan
from modelcache.loader.reader import Reader, Reading, ShardFile, Way, opened
from modelcache.loader.tensors import empty_tensor, tensor_in
from modelcache.patience import Cancellation
from modelcache.units import GIB

AHEAD = 4
"""Extents being read beyond the one that is handed out: 1 GiB at most, unless a tensor is larger."""
IDLE_LIMIT_BYTES = GIB
"""Of memory that is kept for the next load: what came back from tensors that are gone."""

memory = HostMemory(IDLE_LIMIT_BYTES)
"""Of this process."""


@dataclass
class LoadReport:
    """What a load took; filled while it goes on.

    Attributes:
        read_bytes: by the way they came; what lies between wanted tensors and is read along is in it.
        waited_s: for bytes.
        seconds: from the first read to the last tensor, the consumer's own time between them included.
    """

    tensors: int = 0
    tensor_bytes: int = 0
    read_bytes: Counter[Way] = field(default_factory=Counter)
    waited_s: float = 0.0
    seconds: float = 0.0

    @property
    def rate_bytes_per_s(self) -> float:
        return self.tensor_bytes / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Wishes:
    """How tensors are wanted.

    Attributes:
        device: None: where they are read to, in host memory.
        dtype: that floating-point tensors are cast to, on their device; None: as they are. Others keep theirs.
    """

    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        """Raises TypeError: a dtype that weights are not cast to."""
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise TypeError(f"tensors are cast to floating-point types, and not to {self.dtype}")


def stream_tensors(
    checkpoint: Checkpoint,
    names: Sequence[str],
    wishes: Wishes,
    *,
    report: LoadReport | None = None,
    cancel: Cancellation | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of these names, in file order, those of no bytes first. Reads on while the consumer works.

    Args:
        progress: called with the bytes of all tensors handed out so far.

    Raises:
        BadCheckpoint: a file changed since its header was read, or torch has no such dtype.
        StoreFault: the disk failed. MemoryError. Cancelled. OSError: a file can't be opened.
    """
    seen = report or LoadReport()
    started_s = time.monotonic()
    told = 0
    for name in names:
        shard, entry = checkpoint.place[name]
        if entry.span.size_bytes == 0:
            seen.tensors += 1
            yield name, _wished(empty_tensor(entry, str(checkpoint.shards[shard].path)), wishes)
    for extent, reading, file in _readings(checkpoint, names, cancel or Cancellation(), seen):
        for entry in extent.tensors:
            tensor = tensor_in(reading.memory, entry.span.start - extent.span.start, entry, str(file.path))
            seen.tensors += 1
            seen.tensor_bytes += entry.span.size_bytes
            told += entry.span.size_bytes
            seen.seconds = time.monotonic() - started_s
            yield entry.name, _wished(tensor, wishes)
            del tensor
        if progress is not None:
            progress(told)
    seen.seconds = time.monotonic() - started_s


def _readings(
    checkpoint: Checkpoint, names: Sequence[str], cancel: Cancellation, seen: LoadReport
) -> Iterator[tuple[Extent, Reading, ShardFile]]:
    """Every extent once it is read. Keeps no reference to what was handed out."""
    extents = iter(plan(checkpoint, names))
    under_way: deque[Reading] = deque()
    with opened([(shard.path, shard.header.file_bytes) for shard in checkpoint.shards]) as files, Reader(files, memory, cancel) as reader:
        while True:
            while len(under_way) <= AHEAD and (extent := next(extents, None)) is not None:
                under_way.append(reader.start(extent, may_map=True))
            if not under_way:
                return
            reading = under_way.popleft()
            waiting_since_s = time.monotonic()
            seen.read_bytes.update(reading.wait())
            seen.waited_s += time.monotonic() - waiting_since_s
            yield reading.extent, reading, files[reading.extent.shard]
            del reading


def _wished(tensor: torch.Tensor, wishes: Wishes) -> torch.Tensor:
    """On its device first: a cast there moves fewer bytes or is the faster one."""
    if wishes.device is not None:
        tensor = tensor.to(wishes.device)
    if wishes.dtype is not None and tensor.dtype.is_floating_point:
        tensor = tensor.to(wishes.dtype)
    return tensor
