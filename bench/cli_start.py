"""How long does the command line take to answer? `modelcache --help`, beside what typer and rich take alone, and Python by itself.

python -m bench.cli_start
python -m bench.cli_start --times 5
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench import machine
from bench.lines import facts, file_for, record
from modelcache.testing.servers.process import program

TIMEOUT_S = 60
LIMIT_MS = 250.0
BARE = """
import rich.console, typer
app = typer.Typer()
@app.command()
def one() -> None: "One."
@app.command()
def two() -> None: "Two."
app()
"""
HEADINGS = ("what", "p50 ms", "p90 ms")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    out = file_for("cli-start", options.out)
    taken_ms = measure(options.times)
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    where = machine.facts(Path(__file__).parent)
    for what, times_ms in taken_ms.items():
        line = facts("cli_start", where) | _figures(what, times_ms)
        record(line, out)
        print(f"| {what} | {line['p50_ms']:.0f} | {line['p90_ms']:.0f} |")
    help_ms = median(taken_ms["modelcache --help"])
    word = "reached " if help_ms < LIMIT_MS else "MISSED  "
    print(f"{word} `modelcache --help` takes {help_ms:.0f} ms (to stay under: {LIMIT_MS:g})")
    print(out)


def measure(times: int) -> dict[str, list[float]]:
    """Milliseconds of every run, the contenders in a new order each round; a first round that is not counted fills the caches."""
    modelcache = program("modelcache")
    contenders: dict[str, list[str]] = {
        "modelcache --help": [modelcache, "--help"],
        "modelcache pull --help": [modelcache, "pull", "--help"],
        "modelcache ls": [modelcache, "ls"],
        "typer and rich alone, --help": [sys.executable, "-c", BARE, "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    taken_ms: dict[str, list[float]] = {what: [] for what in contenders}
    with tempfile.TemporaryDirectory() as home:
        environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": home}
        for counted in range(times + 1):
            for what in random.sample(list(contenders), len(contenders)):
                run_ms = _run_ms(contenders[what], environ)
                if counted:
                    taken_ms[what].append(run_ms)
    return taken_ms


def _run_ms(argv: list[str], environ: dict[str, str]) -> float:
    started_ns = time.perf_counter_ns()
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    run_ms = (time.perf_counter_ns() - started_ns) / 1e6
    if done.returncode != 0:
        raise SystemExit(f"error: {argv[0]} ended with {done.returncode}: {done.stderr}")
    return run_ms


def _figures(what: str, times_ms: list[float]) -> dict[str, Any]:
    return {
        "what": what,
        "runs": len(times_ms),
        "p50_ms": median(times_ms),
        "p90_ms": quantiles(times_ms, n=10)[-1] if len(times_ms) > 1 else times_ms[0],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cli_start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20, help="runs of each; default: %(default)s")
    parser.add_argument("--out", type=Path, help="file that the lines are added to; default: bench/results/cli-start-DATE.jsonl")
    return parser


if __name__ == "__main__":
    main()
