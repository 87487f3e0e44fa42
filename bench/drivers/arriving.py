"""`arriving.py CONTENDER RANK WORLD`: one rank's part of a model that only its origin has, every page of it touched; what it took as JSON.

The order is in the environment (`BENCH_ARRIVING`). Imports come first; then it says `ready`, and begins when a line comes.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.drivers.loads import touch
from bench.drivers.ranks import dims, read_bytes, resident_bytes

CONTENDERS: dict[str, dict[str, bool]] = {
    "group": {},
    "group-stream": {"streams": True},
    "group-waits": {"waits": True},
    "each-alone": {"alone": True},
}
"""In a group that begins at once, by `load` or by `stream`; in one that waits until all is here; each rank by itself."""


def main() -> None:
    contender, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    order: dict[str, Any] = json.loads(os.environ["BENCH_ARRIVING"])
    import torch  # noqa: F401 - it, and what a load imports, stand outside of the clock

    import modelcache
    import modelcache.arriving.tensors
    from modelcache.config import Config
    from modelcache.loader import sharded  # noqa: F401
    from modelcache.loader.report import LoadReport

    how = CONTENDERS[contender]
    shapes = {name: entry.shape for name, (_, entry) in modelcache.open_checkpoint(order["model"]).place.items()}
    share, group = (rank, world, dims(shapes, world)), None if how.get("alone") else order["group"]
    report = LoadReport()
    print("ready", flush=True)
    sys.stdin.readline()
    resident, read, used, started_s = resident_bytes(), read_bytes(), resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    first_s: list[float] = []
    kept: dict[str, Any] = {}
    touched = 0
    with modelcache.ModelCache(config=Config.load(os.environ, root=Path(order["root"]))) as cache:
        load = partial(modelcache.stream if how.get("streams") else modelcache.load, order["uri"], shard=share, group=group, cache=cache)
        progress = lambda done_bytes: first_s.append(time.monotonic())  # noqa: E731
        found = load(verified_only=how.get("waits", False), report=report, progress=progress)
        for name, tensor in found.items() if isinstance(found, dict) else found:
            touched += touch(tensor)
            kept[name] = tensor
    ended_s = time.monotonic()
    after = resource.getrusage(resource.RUSAGE_SELF)
    answer = {
        "started_s": started_s,
        "first_s": first_s[0],
        "ended_s": ended_s,
        "cpu_s": after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime,
        "read_bytes": read_bytes() - read,
        "part_bytes": sum(tensor.nbytes for tensor in kept.values()),
        "peak_bytes": (after.ru_maxrss << 10) - resident,
        "touched": touched,
        "ways": {str(way): count for way, count in report.read_bytes.items() if count},
        "phases": {name: getattr(report, name) for name in ("fetched_s", "opened_s", "waited_s", "placed_s", "verified_s")},
    }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
