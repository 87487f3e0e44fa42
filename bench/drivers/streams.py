"""`streams.py CONTENDER DIRECTORY`: have a model that only its origin has as tensors in host memory, and print what it took as JSON.

The order is in the environment (`BENCH_STREAM`): the URI, and the command of a program that downloads. Imports come before the clock, the
start of a program after it. Everybody's tensors are touched alike, each as soon as it is there: one byte of every page is summed.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.drivers import keeper
from bench.drivers.loads import PROBE_BYTES, digest_of, fresh_cpu_s_per_gib, touch

Pairs = Iterator[tuple[str, Any]]


def main() -> None:
    contender, directory = sys.argv[1], Path(sys.argv[2])
    order = json.loads(os.environ["BENCH_STREAM"])
    notes: dict[str, Any] = {}
    bring = CONTENDERS[contender](order, directory, notes)
    first_s, kept, touched = None, {}, 0
    with keeper.kept(order["size_bytes"] * 9 // 8 + PROBE_BYTES):
        before, started_s = usage(), time.monotonic()
        for name, tensor in bring():
            touched += touch(tensor)
            first_s = first_s or time.monotonic() - started_s
            kept[name] = tensor
        total_s = time.monotonic() - started_s
        after = usage()
        fresh = fresh_cpu_s_per_gib()
    own, programs = after
    answer = {
        "total_s": total_s,
        "first_tensor_s": first_s,
        "user_s": own.ru_utime + programs.ru_utime - before[0].ru_utime - before[1].ru_utime,
        "system_s": own.ru_stime + programs.ru_stime - before[0].ru_stime - before[1].ru_stime,
        "peak_rss_bytes": max(own.ru_maxrss << 10, notes.pop("program_rss_bytes", 0)),
        "fresh_cpu_s_per_gib": fresh,
        "tensors": len(kept),
        "touched": touched,
        "digest": digest_of(kept) if kept else None,
        **notes,
    }
    answer["cpu_s"] = answer["user_s"] + answer["system_s"]
    print(json.dumps(answer))


def usage() -> tuple[resource.struct_rusage, resource.struct_rusage]:
    """Of this process, and of the programs that it ran to their end."""
    return resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)


def ours(*, in_halves: bool = False, tensors: bool = True) -> Callable[[dict[str, Any], Path, dict[str, Any]], Callable[[], Pairs]]:
    """The public `stream` into a fresh store; in halves: the model first, and then its tensors; or the first half alone."""

    def prepare(order: dict[str, Any], directory: Path, notes: dict[str, Any]) -> Callable[[], Pairs]:
        import torch  # noqa: F401 - so that its import stands outside of the clock

        import modelcache
        import modelcache.loader.loading
        from modelcache.config import Config
        from modelcache.loader.report import LoadReport

        def bring() -> Pairs:
            report = LoadReport()
            started_s = time.monotonic()
            with modelcache.ModelCache(config=Config.load(os.environ, root=directory)) as cache:
                if not tensors:
                    cache.ensure(order["uri"])
                    return
                if in_halves:
                    with cache.open(order["uri"]):
                        notes["downloaded_s"] = time.monotonic() - started_s
                yield from modelcache.stream(order["uri"], cache=cache, report=report)
            notes["ways"] = {str(way): size_bytes for way, size_bytes in report.read_bytes.items()}
            notes["phases"] = {name: getattr(report, name) for name in ("fetched_s", "opened_s", "waited_s", "placed_s", "verified_s")}

        return bring

    return prepare


def program(order: dict[str, Any], directory: Path, notes: dict[str, Any]) -> Callable[[], Pairs]:
    """A program downloads, and then safetensors loads each file, mapped."""
    from safetensors.torch import load_file

    def bring() -> Pairs:
        started_s = time.monotonic()
        started = subprocess.Popen(order["argv"], env=order["environ"], stdin=subprocess.DEVNULL, stdout=sys.stderr)
        _, status, used = os.wait4(started.pid, 0)  # whoever started this ends both when it takes too long
        started.returncode = os.waitstatus_to_exitcode(status)
        if started.returncode != 0:
            raise RuntimeError(f"{order['argv'][0]} ended with {started.returncode}")
        notes["program_rss_bytes"] = used.ru_maxrss << 10
        notes["downloaded_s"] = time.monotonic() - started_s
        for path in sorted(directory.rglob("*.safetensors")):
            yield from load_file(path).items()

    return bring


def huggingface_hub(order: dict[str, Any], directory: Path, notes: dict[str, Any]) -> Callable[[], Pairs]:
    """`snapshot_download` in this process, and then safetensors."""
    from huggingface_hub import snapshot_download
    from safetensors.torch import load_file

    def bring() -> Pairs:
        started_s = time.monotonic()
        snapshot = Path(snapshot_download(order["repo"], cache_dir=directory, token=False))
        notes["downloaded_s"] = time.monotonic() - started_s
        for path in sorted(snapshot.glob("*.safetensors")):
            yield from load_file(path).items()

    return bring


CONTENDERS = {
    "ours-stream": ours(),
    "ours-then-load": ours(in_halves=True),
    "ours-download": ours(tensors=False),
    "s5cmd-then-load": program,
    "aws-then-load": program,
    "hub-ours-stream": ours(),
    "hub-then-load": huggingface_hub,
}


if __name__ == "__main__":
    main()
