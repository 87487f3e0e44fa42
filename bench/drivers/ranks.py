"""`ranks.py CONTENDER RANK WORLD DIRECTORY GROUP`: one rank's part of a checkpoint, every page of it touched; what it took as JSON.

Imports come first; then it says `ready`, and begins when a line comes.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.drivers.loads import touch

ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
COLUMNS = ("o_proj", "down_proj")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    contender, rank, world, directory, group = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5]
    load = LOADERS[contender](rank, world, directory, group)
    print("ready", flush=True)
    sys.stdin.readline()
    resident = resident_bytes()
    read, used, started_s = read_bytes(), resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    loaded = load()
    touched = sum(map(touch, loaded.values()))
    ended_s = time.monotonic()
    after = resource.getrusage(resource.RUSAGE_SELF)
    answer = {
        "started_s": started_s,
        "ended_s": ended_s,
        "cpu_s": after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime,
        "read_bytes": read_bytes() - read,
        "part_bytes": sum(tensor.nbytes for tensor in loaded.values()),
        "peak_bytes": (after.ru_maxrss << 10) - resident,
        "touched": touched,
        "ways": getattr(load, "ways", None),
    }
    print(json.dumps(answer), flush=True)


def read_bytes() -> int:
    """That this process had the disk fetch (proc(5), /proc/pid/io)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def dims(shapes: Mapping[str, tuple[int, ...]], world: int) -> dict[str, int | None]:
    """As tensor parallelism splits a Llama; what the last tensor of a file has too few rows for stays whole."""
    found: dict[str, int | None] = {}
    for name, shape in shapes.items():
        kind = name.split(".")[-2]
        dim = 0 if kind in ROWS else 1 if kind in COLUMNS else None
        found[name] = None if dim is None or shape[dim] % world else dim
    return found


def ours(together: bool) -> Callable[[int, int, Path, str], Any]:
    def made(rank: int, world: int, directory: Path, group: str) -> Any:
        import modelcache.loading  # this and the next are imported before the clock
        from modelcache.loader import sharded  # noqa: F401
        from modelcache.loader.report import LoadReport

        class Load:
            ways: Mapping[str, int] = {}

            def __call__(self) -> Any:
                report = LoadReport()
                shapes = {name: entry.shape for name, (_, entry) in modelcache.open_checkpoint(directory).place.items()}
                share = rank, world, dims(shapes, world)
                loaded = modelcache.load(directory, shard=share, group=group if together else None, report=report)
                self.ways = {str(way): count for way, count in report.read_bytes.items() if count}
                return loaded

        return Load()

    return made


def safetensors(rank: int, world: int, directory: Path, group: str) -> Any:
    """`get_slice`, as frameworks with tensor parallelism use it."""
    import torch  # noqa: F401
    from safetensors import safe_open

    def load() -> Any:
        found = {}
        for path in sorted(directory.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
                rules = dims({name: tuple(each.get_shape()) for name, each in slices.items()}, world)
                for name, each in slices.items():
                    dim = rules[name]
                    size = 0 if dim is None else each.get_shape()[dim] // world
                    part = slice(rank * size, (rank + 1) * size)
                    found[name] = (each[:] if dim is None else each[part] if dim == 0 else each[:, part]).contiguous()
        return found

    return load


LOADERS: dict[str, Callable[[int, int, Path, str], Any]] = {"together": ours(True), "alone": ours(False), "safetensors": safetensors}

if __name__ == "__main__":
    main()
