"""What does a model cost that is already here? In process, and by the command line; the origin is switched off meanwhile.

python -m bench.hit                    models of 4, 100 and 10,000 files
python -m bench.hit --files 4 --seconds 1
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench import machine
from bench.contenders import DRIVERS
from bench.lines import add_options, facts, file_for, record
from bench.model import make_small_files
from bench.origins import PREFIX, Served, nginx_with
from modelcache.testing.servers.process import program

FILE_BYTES = 4096
TIMEOUT_S = 600
LIMIT_MS = 10.0
HEADINGS = ("files", "p50 ms", "p99 ms", "first ms", "open ms", "`modelcache path` ms")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    out = file_for("hit", options.out)
    options.cache.mkdir(parents=True, exist_ok=True)
    where = machine.facts(options.cache)
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    missed = []
    for files in map(int, options.files.split(",")):
        line = {"files": files} | measure(files, options.cache, options.seconds, options.processes) | facts("hit", where)
        record(line, out)
        shown = [line[key] for key in ("hit_p50_ms", "hit_p99_ms", "first_p50_ms", "open_p50_ms", "command_p50_ms")]
        print(f"| {files} | {' | '.join(f'{value:.2f}' for value in shown)} |")
        for what, key in (("a hit", "hit_p99_ms"), ("the first hit of a process", "first_p50_ms")):
            if line[key] >= LIMIT_MS:
                missed.append(f"MISSED   {what} on a model of {files} files: {key} is {line[key]:.1f} (to stay under: {LIMIT_MS:g})")
    print("\n".join(missed or [f"reached  every hit stays under {LIMIT_MS:g} ms"]))
    print(out)


def measure(files: int, cache: Path, limit_s: float, processes: int) -> dict[str, Any]:
    """Fill a new store with a model of `files` files, switch its origin off, and ask for it again and again."""
    bucket = f"hit-{files}"
    root = cache / "bench-scratch"
    make_small_files(cache / "nginx" / bucket / PREFIX, files, FILE_BYTES)
    shutil.rmtree(root, ignore_errors=True)
    try:
        with nginx_with(cache / "nginx", bucket) as served:
            environ = _environ(served, root)
            filled = _hits(served.uri, 0, environ)
        runs = [_hits(served.uri, limit_s / processes, environ) for _ in range(processes)]
        commands_ms = list(_commands_ms(served.uri, environ, processes))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    hits_ms = [taken / 1e6 for run in runs for taken in run["hits_ns"]]
    return {
        "hits": len(hits_ms),
        "hit_p50_ms": median(hits_ms),
        "hit_p99_ms": quantiles(hits_ms, n=100)[-1] if len(hits_ms) > 1 else hits_ms[0],
        "first_p50_ms": median(run["first_ns"] for run in runs) / 1e6,
        "open_p50_ms": median(run["open_ns"] for run in runs) / 1e6,
        "command_p50_ms": median(commands_ms),
        "processes": processes,
        "fetch_ms": filled["first_ns"] / 1e6,
    }


def _environ(served: Served, root: Path) -> dict[str, str]:
    day_s = "86400"  # so that no ref grows old while it is measured
    own = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(root), "MODELCACHE_ROOT": str(root), "MODELCACHE_REFRESH_S": day_s}
    return {**own, **machine.NO_WATERMARKS, **served.environ}


def _hits(uri: str, limit_s: float, environ: dict[str, str]) -> dict[str, Any]:
    """In a new process: opening the store, the first ensure, and the ones after it."""
    argv = [sys.executable, str(DRIVERS / "hits.py"), uri, str(limit_s)]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: {done.stderr}")
    taken: dict[str, Any] = json.loads(done.stdout)
    return taken


def _commands_ms(uri: str, environ: dict[str, str], times: int) -> Iterator[float]:
    argv = [program("modelcache"), "path", uri]
    for _ in range(times):
        started_ns = time.perf_counter_ns()
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        yield (time.perf_counter_ns() - started_ns) / 1e6
        if done.returncode != 0:
            raise SystemExit(f"error: `modelcache path` ended with {done.returncode}: {done.stderr}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.hit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="4,100,10000", help="of the models, separated by commas; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="at most, for the hits of one model; default: %(default)s")
    parser.add_argument("--processes", type=int, default=5, help="among which the hits are divided; default: %(default)s")
    add_options(parser, "hit", cache="models and the store")
    return parser


if __name__ == "__main__":
    main()
