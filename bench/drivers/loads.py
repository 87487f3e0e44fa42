"""`loads.py CONTENDER STATE DIRECTORY`: load a checkpoint once, every byte of it materialised, and print what it took as JSON.

Imports and the state of the page cache come before the clock. Everybody's tensors are touched alike: one byte of every page is summed.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from bench.drivers import keeper

MIB = 1 << 20
PAGE_BYTES = 4096
BLOCK_BYTES = 8 * MIB
THREADS = 4
DIGEST_BYTES = 4 * MIB
CACHESTAT = 451
PROBE_BYTES = 128 * MIB
Loaded = Mapping[str, Any]
RUNAI = {
    "runai": {},
    "runai-direct": {"RUNAI_STREAMER_FS_STRATEGY": "libaio_direct"},
    "runai-buffered": {"RUNAI_STREAMER_FS_STRATEGY": "sync_buffered", "RUNAI_STREAMER_CONCURRENCY": "4"},
}


def main() -> None:
    contender, state, directory = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    os.environ.update(RUNAI.get(contender, {}))
    started_s = time.monotonic()
    load = LOADERS[contender]()
    import_s = time.monotonic() - started_s
    files = sorted(directory.glob(f"*{suffix_of(contender)}"))
    touch_first()
    if contender.endswith("-reused"):
        set_state(directory, files, "cold")
        sum(map(touch, load(files).values()))  # and dropped: the same memory is read into again
    set_state(directory, files, state)
    size_bytes = sum(path.stat().st_size for path in files)
    with nullcontext() if contender.endswith("-reused") else keeper.kept(size_bytes * 9 // 8 + PROBE_BYTES):
        set_state(directory, files, state)  # what that drove out
        resident = sum(map(resident_bytes, files)) / size_bytes
        before, started_s = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        loaded = load(files)
        touched = sum(map(touch, loaded.values()))
        wall_s = time.monotonic() - started_s
        after = resource.getrusage(resource.RUSAGE_SELF)
        fresh = fresh_cpu_s_per_gib()
    answer = {
        "wall_s": wall_s,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_rss_bytes": after.ru_maxrss << 10,
        "import_s": import_s,
        "fresh_cpu_s_per_gib": fresh,
        "resident_before": resident,
        "touched": touched,
        "digest": digest_of(loaded) if loaded and not contender.startswith(("ceiling", "mmap")) else None,
        "ways": getattr(load, "ways", None),
    }
    print(json.dumps(answer))


def suffix_of(contender: str) -> str:
    """Of the files that a contender loads."""
    return {"torch": ".pt", "tensorizer": ".tensors"}.get(contender.split("-")[0], ".safetensors")


# -- memory and the page cache -------------------------------------------------------------------------------------------


def set_state(directory: Path, files: list[Path], state: str) -> None:
    """`cold`, `half` (of the files) or `warm`; nothing else of the directory stays in memory."""
    resident = files[: {"cold": 0, "half": len(files) // 2, "warm": len(files)}[state]]
    buffer = bytearray(BLOCK_BYTES)
    for path in directory.iterdir():
        fd = os.open(path, os.O_RDONLY)
        if path in resident:
            while os.readv(fd, [buffer]):
                pass
        else:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def fresh_cpu_s_per_gib() -> float:
    """What it costs just now to touch memory for the first time, in huge pages, and do nothing with it."""
    piece = huge(PROBE_BYTES)
    before = resource.getrusage(resource.RUSAGE_SELF)
    piece.madvise(keeper.POPULATE_WRITE)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / (PROBE_BYTES / 2**30)


def resident_bytes(path: Path) -> int:
    """cachestat(2)."""
    fd = os.open(path, os.O_RDONLY)
    asked, answer = (ctypes.c_uint64 * 2)(0, path.stat().st_size), (ctypes.c_uint64 * 5)()
    failed = ctypes.CDLL(None).syscall(CACHESTAT, ctypes.c_uint(fd), ctypes.byref(asked), ctypes.byref(answer), ctypes.c_uint(0))
    os.close(fd)
    return -1 if failed else min(answer[0] * PAGE_BYTES, path.stat().st_size)


def touch_first() -> None:
    """The first of a tensor may wait for torch's code to come from the disk (20 ms), and one of the ceilings' memory needs none of it."""
    import torch

    touch(torch.zeros(PAGE_BYTES, dtype=torch.uint8))


def touch(tensor: Any) -> int:
    if isinstance(tensor, memoryview):
        return sum(tensor[::PAGE_BYTES])
    import torch

    return int(tensor.contiguous().flatten().view(torch.uint8)[::PAGE_BYTES].sum())


def digest_of(loaded: Loaded) -> str:
    """Over the first bytes of every tensor."""
    import torch

    total = hashlib.sha256()
    for name in sorted(loaded):
        raw = loaded[name].contiguous().flatten().view(torch.uint8)[:DIGEST_BYTES]
        total.update(name.encode())
        total.update(raw.numpy())
    return total.hexdigest()


# -- contenders: each a function that imports what it needs and gives the one that is timed ---------------------------


def ours(*, may_map: bool | None = None) -> Callable[[list[Path]], Loaded]:
    import modelcache
    import modelcache.arriving.tensors  # which a first load imports
    from modelcache.loader.loading import memory
    from modelcache.loader.report import LoadReport

    memory.idle_limit_bytes = 64 << 30  # all that comes back is kept: `ours-reused` measures what that is worth
    modelcache.load  # noqa: B018 - imports it

    def load(files: list[Path]) -> Loaded:
        report = LoadReport()
        loaded = modelcache.load(files[0].parent, may_map=may_map, report=report)
        setattr(load, "ways", {str(way): size_bytes for way, size_bytes in report.read_bytes.items()})  # noqa: B010
        return loaded

    return load


def safetensors_mapped() -> Callable[[list[Path]], Loaded]:
    from safetensors.torch import load_file

    return lambda files: {name: tensor for path in files for name, tensor in load_file(path).items()}


def safetensors_cloned() -> Callable[[list[Path]], Loaded]:
    from safetensors.torch import load_file

    return lambda files: {name: tensor.clone() for path in files for name, tensor in load_file(path).items()}


def runai() -> Callable[[list[Path]], Loaded]:
    from runai_model_streamer import SafetensorsStreamer

    def load(files: list[Path]) -> Loaded:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files([str(path) for path in files])
            return dict(streamer.get_tensors())

    return load


def fastsafetensors() -> Callable[[list[Path]], Loaded]:
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    def load(files: list[Path]) -> Loaded:
        loader = SafeTensorsFileLoader(SingleGroup(), device="cpu", nogds=True)
        loader.add_filenames({0: [str(path) for path in files]})
        buffer = loader.copy_files_to_device()
        KEPT.append((loader, buffer))
        return {name: buffer.get_tensor(name) for name in loader.get_keys()}

    return load


def tensorizer(*, readers: int | None) -> Callable[[list[Path]], Loaded]:
    from tensorizer import TensorDeserializer

    def load(files: list[Path]) -> Loaded:
        found: dict[str, Any] = {}
        for path in files:
            opened = TensorDeserializer(path, device="cpu", num_readers=readers)
            KEPT.append(opened)
            found.update(opened)
        return found

    return load


def torch_load(*, mapped: bool) -> Callable[[list[Path]], Loaded]:
    import torch

    return lambda files: {name: tensor for path in files for name, tensor in torch.load(path, mmap=mapped).items()}


def preadv(*, direct: bool, prefaulted: bool) -> Callable[[list[Path]], Loaded]:
    import torch  # noqa: F401 - so that everybody's process is the same

    arena: list[mmap.mmap] = []

    def load(files: list[Path]) -> Loaded:
        pieces = arena or [huge(path.stat().st_size) for path in files]
        blocks: queue.SimpleQueue[tuple[int, int, mmap.mmap]] = queue.SimpleQueue()
        fds = [os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0)) for path in files]
        for fd, path, piece in zip(fds, files, pieces, strict=True):
            for at in range(0, path.stat().st_size, BLOCK_BYTES):
                blocks.put((fd, at, piece))
        threads = [threading.Thread(target=drain, args=(blocks,)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for fd in fds:
            os.close(fd)
        return {path.name: memoryview(piece) for path, piece in zip(files, pieces, strict=True)}

    if prefaulted:
        for path in sorted(Path(sys.argv[3]).glob("*.safetensors")):
            piece = huge(path.stat().st_size)
            for at in range(0, len(piece), PAGE_BYTES):
                piece[at] = 0
            arena.append(piece)
    return load


def mapped_and_touched() -> Callable[[list[Path]], Loaded]:
    import torch  # noqa: F401 - so that everybody's process is the same

    def load(files: list[Path]) -> Loaded:
        found = {}
        for path in files:
            with path.open("rb") as file:
                found[path.name] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return found

    return load


def huge(size_bytes: int) -> mmap.mmap:
    piece = mmap.mmap(-1, -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    piece.madvise(mmap.MADV_HUGEPAGE)
    return piece


def drain(blocks: queue.SimpleQueue[tuple[int, int, mmap.mmap]]) -> None:
    while True:
        try:
            fd, at, piece = blocks.get_nowait()
        except queue.Empty:
            return
        with memoryview(piece) as whole, whole[at : at + BLOCK_BYTES] as part:
            got = 0
            while got < len(part):
                with part[got:] as rest:
                    count = os.preadv(fd, [rest], at + got)
                got += count
                if count == 0 or count % PAGE_BYTES:
                    break  # the file's end


KEPT: list[object] = []
LOADERS: Mapping[str, Callable[[], Callable[[list[Path]], Loaded]]] = {
    "ours": ours,
    "ours-reused": ours,
    "ours-unmapped": lambda: ours(may_map=False),
    "safetensors": safetensors_mapped,
    "safetensors-clone": safetensors_cloned,
    "runai": runai,
    "runai-direct": runai,
    "runai-buffered": runai,
    "fastsafetensors": fastsafetensors,
    "tensorizer": lambda: tensorizer(readers=None),
    "tensorizer-4": lambda: tensorizer(readers=4),
    "torch-load": lambda: torch_load(mapped=False),
    "torch-load-mmap": lambda: torch_load(mapped=True),
    "ceiling-direct": lambda: preadv(direct=True, prefaulted=False),
    "ceiling-direct-reused": lambda: preadv(direct=True, prefaulted=True),
    "ceiling-buffered": lambda: preadv(direct=False, prefaulted=False),
    "ceiling-buffered-reused": lambda: preadv(direct=False, prefaulted=True),
    "mmap-touch": mapped_and_touched,
}


if __name__ == "__main__":
    main()
