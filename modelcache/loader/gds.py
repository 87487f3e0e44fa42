"""GPUDirect Storage: blocks of files straight into a GPU's memory, through kvikio, where that was seen to be faster."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from modelcache.errors import BadConfig, DeviceFault
from modelcache.loader.device import Device, Target
from modelcache.loader.files import Way
from modelcache.loader.layout import Piece
from modelcache.loader.options import Gds
from modelcache.loader.plan import ALIGNMENT
from modelcache.loader.residency import resident_share
from modelcache.loader.shard_file import CACHED_SHARE, ShardFile
from modelcache.ranges import ByteRange

KERNEL_PART = Path("/proc/driver/nvidia-fs")
"""There while the nvidia-fs module is loaded (GPUDirect Storage, Troubleshooting Guide)."""
FILE_SYSTEMS = frozenset({"ext4", "xfs"})
"""Local ones that nvidia-fs reads from (the same guide)."""
TRIED_BLOCKS = 8
"""Of each way, before one is chosen: half a second of one NVMe disk, and none of it is read twice."""
GAIN = 0.95
"""The share of the other way's time that it has to stay under."""


class Trial:
    """Which of two ways is the faster, seen on the first blocks. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = 0
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        self.verdict: bool | None = None

    def is_next(self) -> bool:
        """Whether the next block goes straight; taken in turns until there is a verdict."""
        with self._lock:
            self._asked += 1
            return self._asked % 2 == 1 if self.verdict is None else self.verdict

    def took(self, straight: bool, seconds: float) -> None:
        """A block of full size took so long by one of the ways."""
        with self._lock:
            self._seconds[straight].append(seconds)
            if self.verdict is None and min(map(len, self._seconds.values())) >= TRIED_BLOCKS:
                mine, other = (sorted(self._seconds[way])[len(self._seconds[way]) // 2] for way in (True, False))
                self.verdict = mine <= GAIN * other

    def give_up(self) -> None:
        with self._lock:
            self.verdict = False


_TRIALS: dict[tuple[str, int], Trial] = {}
"""Of this process, by device and disk."""


class StraightReads:
    """Reads of one load into one device; used by several threads, closed when none reads any more."""

    def __init__(self, device: Device, *, always: bool) -> None:
        self._device = device
        self._always = always
        self._lock = threading.Lock()
        self._files: dict[int, Any] = {}

    def read(self, file: object, block: ByteRange, pieces: Sequence[Piece], target: Target) -> bool:
        """Bring a block whose pages are a device's, too, and that is not in the page cache; False: it has to go the other way.

        Raises:
            DeviceFault: it had to be this way, and failed.
        """
        trial = self._trial_of(file, block, pieces)
        if not isinstance(file, ShardFile) or trial is None or not (self._always or trial.is_next()):
            return False
        (piece,) = pieces
        self._device.settle(target)
        started_s = time.monotonic()
        try:
            with self._device.current():  # cuFile, and kvikio before it, work in the thread's own context (cpp/src/file_handle.cpp, `read`)
                got = self._opened(file).raw_read(target.memory[piece.at : piece.at + piece.size_bytes], piece.size_bytes, block.start, 0)
        except (OSError, RuntimeError) as error:
            if self._always:
                failed = error.with_traceback(None)  # its frames keep memory
                raise DeviceFault(f"GPUDirect Storage failed ({error}): {file.path}", address=self._device.name) from failed
            trial.give_up()
            return False
        trial.took(True, time.monotonic() - started_s)
        return bool(got == piece.size_bytes)

    def took(self, file: object, block: ByteRange, pieces: Sequence[Piece], way: Way, seconds: float) -> None:
        """A block went the other way."""
        trial = self._trial_of(file, block, pieces) if way in (Way.DIRECT, Way.BUFFERED) else None
        if trial is not None:
            trial.took(False, seconds)

    def close(self) -> None:
        with self._lock:
            files, self._files = list(self._files.values()), {}
        for each in files:
            each.close()

    def _trial_of(self, file: object, block: ByteRange, pieces: Sequence[Piece]) -> Trial | None:
        """None: this block can't be read so, is in the page cache, or the other way is known to be better."""
        if not isinstance(file, ShardFile) or len(pieces) != 1 or pieces[0].size_bytes != block.size_bytes:
            return None
        if any(each % ALIGNMENT for each in (block.start, block.size_bytes, pieces[0].at)):
            return None
        key = self._device.name, os.fstat(file.fd).st_dev
        trial = _TRIALS.get(key)
        if trial is None:
            found = Trial()
            if not has_support(file.fd):
                found.give_up()
            trial = _TRIALS.setdefault(key, found)  # as it is to stay: other threads take it at once
        if trial.verdict is False and not self._always:
            return None
        share = resident_share(file.fd, block)
        is_cold = self._always if share is None else share < CACHED_SHARE
        return trial if is_cold else None

    def _opened(self, file: ShardFile) -> Any:
        import kvikio

        with self._lock:
            found = self._files.get(file.fd)
            if found is None:  # by descriptor: the very file, whatever has its name by now
                found = self._files[file.fd] = kvikio.CuFile(f"/proc/self/fd/{file.fd}", "r")
            return found


def straight_reads(device: Device, wish: Gds) -> StraightReads | None:
    """What reads straight into a device; None: nothing here may. kvikio is imported with the first block that it reads.

    Raises:
        BadConfig: it is asked for and not installed.
    """
    if wish is Gds.NEVER:
        return None
    if find_spec("kvikio") is None:
        if wish is Gds.ALWAYS:
            raise BadConfig("GPUDirect Storage needs kvikio, which is not installed", hint="install kvikio, or set gpu.gds to auto")
        return None
    if wish is Gds.AUTO and not KERNEL_PART.exists():
        return None
    return StraightReads(device, always=wish is Gds.ALWAYS)


def has_support(fd: int) -> bool:
    """Whether the file system of an open file is one that GPUDirect Storage reads from."""
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")  # proc(5), mountinfo
        if before.split()[2] == number:
            return after.split()[0] in FILE_SYSTEMS
    return False
