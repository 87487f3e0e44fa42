"""`gpu_loads.py CONTENDER STATE DIRECTORY DEVICE`: bring a checkpoint to a GPU once, and print what it took as JSON.

Imports, setting the GPU up and the state of the page cache come before the clock; it stops when the device has every byte.
Exit status 3: the contender is not installed.
"""

from __future__ import annotations

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
from pathlib import Path
from typing import Any

from bench.drivers.loads import BLOCK_BYTES, DIGEST_BYTES, MIB, RUNAI, Loaded, resident_bytes, set_state, suffix_of

ABSENT = 3
RING_BLOCKS = 32
"""Of the ceilings, 256 MiB as in the loader."""
KEPT: list[object] = []
Load = Callable[[list[Path], str], Loaded]


def main() -> None:
    contender, state, directory, device = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    os.environ.update(RUNAI.get(contender, {}))
    started_s = time.monotonic()
    try:
        load = LOADERS[contender]()
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        sys.exit(ABSENT)
    import_s = time.monotonic() - started_s
    files = sorted(directory.glob(f"*{suffix_of(contender)}"))
    set_up(device)
    if contender.endswith("-reused"):
        set_state(directory, files, state)
        load(files, device)  # and dropped: pinned and device memory are there
    set_state(directory, files, state)
    resident = sum(map(resident_bytes, files)) / sum(path.stat().st_size for path in files)
    before, started_s = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    loaded = load(files, device)
    synchronise(device)
    wall_s = time.monotonic() - started_s
    after = resource.getrusage(resource.RUSAGE_SELF)
    answer = {
        "wall_s": wall_s,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_rss_bytes": after.ru_maxrss << 10,
        "peak_device_bytes": peak_device_bytes(device),
        "import_s": import_s,
        "resident_before": resident,
        "digest": digest_of(loaded) if loaded else None,
        "ways": getattr(load, "ways", None),
        "device": facts(device),
    }
    print(json.dumps(answer))


# -- the device; `cpu` is for rehearsals without one --------------------------------------------------------------------


def set_up(device: str) -> None:
    """Its context, a kernel, a copy: seconds that are nobody's."""
    import torch

    if device != "cpu":
        torch.ones(MIB, device=device).sum().cpu()
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)


def synchronise(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)


def peak_device_bytes(device: str) -> int:
    """That torch's allocator gave out."""
    import torch

    return 0 if device == "cpu" else int(torch.cuda.max_memory_allocated(device))


def facts(device: str) -> dict[str, Any]:
    import torch

    if device == "cpu":
        return {"name": "cpu", "torch": torch.__version__}
    properties = torch.cuda.get_device_properties(device)
    return {"name": properties.name, "memory_bytes": properties.total_memory, "torch": torch.__version__, "cuda": torch.version.cuda}


def digest_of(loaded: Loaded) -> str:
    """Over the first bytes of every tensor."""
    import torch

    total = hashlib.sha256()
    for name in sorted(loaded):
        raw = loaded[name].contiguous().flatten().view(torch.uint8)[:DIGEST_BYTES]
        total.update(name.encode())
        total.update(raw.cpu().numpy())
    return total.hexdigest()


# -- contenders: each a function that imports what it needs and gives the one that is timed -------------------------------


def ours() -> Load:
    import modelcache
    import modelcache.loader.loading
    from modelcache.loader.report import LoadReport

    modelcache.load  # noqa: B018 - imports it

    def load(files: list[Path], device: str) -> Loaded:
        report = LoadReport()
        loaded = modelcache.load(files[0].parent, device=device, report=report)
        setattr(load, "ways", {str(way): size_bytes for way, size_bytes in report.read_bytes.items()})  # noqa: B010
        return loaded

    return load


def safetensors(*, through_host: bool) -> Load:
    from safetensors.torch import load_file

    def load(files: list[Path], device: str) -> Loaded:
        if through_host:
            return {name: tensor.to(device) for path in files for name, tensor in load_file(path).items()}
        return {name: tensor for path in files for name, tensor in load_file(path, device=device).items()}

    return load


def runai() -> Load:
    from runai_model_streamer import SafetensorsStreamer

    def load(files: list[Path], device: str) -> Loaded:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files([str(path) for path in files])
            return {name: tensor.to(device) for name, tensor in streamer.get_tensors()}

    return load


def fastsafetensors(*, gds: bool) -> Load:
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    def load(files: list[Path], device: str) -> Loaded:
        loader = SafeTensorsFileLoader(SingleGroup(), device=device, nogds=not gds)
        loader.add_filenames({0: [str(path) for path in files]})
        buffer = loader.copy_files_to_device()
        KEPT.append((loader, buffer))
        return {name: buffer.get_tensor(name) for name in loader.get_keys()}

    return load


def instanttensor() -> Load:
    from instanttensor import safe_open
    from torch import device as named

    def load(files: list[Path], device: str) -> Loaded:
        with safe_open([str(path) for path in files], framework="pt", device=named(device).index or 0) as opened:
            return dict(opened.tensors())

    return load


def tensorizer() -> Load:
    from tensorizer import TensorDeserializer

    def load(files: list[Path], device: str) -> Loaded:
        found: dict[str, Any] = {}
        for path in files:
            opened = TensorDeserializer(path, device=device)
            KEPT.append(opened)
            found.update(opened)
        return found

    return load


def torch_load(*, mapped: bool) -> Load:
    import torch

    def load(files: list[Path], device: str) -> Loaded:
        if mapped:
            return {name: tensor.to(device) for path in files for name, tensor in torch.load(path, mmap=True).items()}
        return {name: tensor for path in files for name, tensor in torch.load(path, map_location=device).items()}

    return load


# -- ceilings ---------------------------------------------------------------------------------------------------------------


def bus() -> Load:
    """Pinned memory to the device, as many bytes as the model has, in copies of 8 MiB on one stream."""
    import torch

    def load(files: list[Path], device: str) -> Loaded:
        size_bytes = sum(path.stat().st_size for path in files)
        if not KEPT:
            KEPT.append(torch.ones(RING_BLOCKS * BLOCK_BYTES, dtype=torch.uint8, pin_memory=device != "cpu"))
        ring = KEPT[0]
        assert isinstance(ring, torch.Tensor)
        target = torch.empty(-(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES, dtype=torch.uint8, device=device)
        for number in range(len(target) // BLOCK_BYTES):
            at = number % RING_BLOCKS * BLOCK_BYTES
            target[number * BLOCK_BYTES :][:BLOCK_BYTES].copy_(ring[at : at + BLOCK_BYTES], non_blocking=True)
        return {}

    return load


def disk() -> Load:
    """Files into touched memory that is used again, each by the better way: out of the page cache if it is there, else around it."""
    import torch  # noqa: F401 - so that everybody's process is the same

    def load(files: list[Path], device: str) -> Loaded:
        blocks: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        fds = []
        for path in files:
            is_there = resident_bytes(path) > path.stat().st_size // 2
            fds.append(fd := os.open(path, os.O_RDONLY | (0 if is_there else os.O_DIRECT)))
            for at in range(0, path.stat().st_size, BLOCK_BYTES):
                blocks.put((fd, at))
        count = max(4, min(16, len(os.sched_getaffinity(0))))
        while len(KEPT) < count:
            piece = mmap.mmap(-1, BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            piece.write(b"\1" * BLOCK_BYTES)
            KEPT.append(piece)
        threads = [threading.Thread(target=_drain, args=(blocks, piece)) for piece in KEPT[:count]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for fd in fds:
            os.close(fd)
        return {}

    return load


def _drain(blocks: queue.SimpleQueue[tuple[int, int]], piece: mmap.mmap) -> None:
    while True:
        try:
            fd, at = blocks.get_nowait()
        except queue.Empty:
            return
        os.preadv(fd, [piece], at)


LOADERS: Mapping[str, Callable[[], Load]] = {
    "ours": ours,
    "ours-reused": ours,
    "safetensors": lambda: safetensors(through_host=False),
    "safetensors-host": lambda: safetensors(through_host=True),
    "runai": runai,
    "runai-direct": runai,
    "runai-buffered": runai,
    "fastsafetensors": lambda: fastsafetensors(gds=False),
    "fastsafetensors-gds": lambda: fastsafetensors(gds=True),
    "instanttensor": instanttensor,
    "tensorizer": tensorizer,
    "torch-load": lambda: torch_load(mapped=False),
    "torch-load-mmap": lambda: torch_load(mapped=True),
    "ceiling-bus-reused": bus,
    "ceiling-disk-reused": disk,
}


if __name__ == "__main__":
    main()
