"""How fast does a checkpoint become tensors on a GPU? Ours against what people use, for every state of the page cache.

python -m bench.gpu                       8 GiB in 4 shards, three rounds
python -m bench.gpu --size 2GiB --rounds 1 --contenders ours,safetensors,ceiling-bus-reused,ceiling-disk-reused
python -m bench.gpu --device cpu --size 64MiB --rounds 1    a rehearsal without a GPU: its figures mean nothing

Needs torch with CUDA and, of other packages, xxhash, safetensors, numpy and psutil; no network. A contender that can't be imported is left
out, and said to be; --packages names a directory that has them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import lines, machine
from bench.drivers.gpu_loads import ABSENT, LOADERS
from bench.load import SHARDS, STATES, Rows, mark_published, said, shares
from bench.model import make_llama
from modelcache.units import GIB, parse_bytes

DRIVERS = Path(__file__).parent / "drivers"
TIMEOUT_S = 900
HEADINGS = ("state", "contender", "GiB/s", "CPU s/GiB", "host peak ÷ model", "device peak ÷ model", "runs")
KEYS = ("rate_gib_per_s", "cpu_s_per_gib", "peak_rss_share", "peak_device_share")
BUS, DISK = "ceiling-bus-reused", "ceiling-disk-reused"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    chosen = lines.chosen_of(options.contenders, LOADERS)
    lines.chosen_of(options.states, STATES, what="state")
    out = lines.file_for("gpu", options.out)
    model = options.cache / f"llama-{options.size}"
    make_llama(model, options.size, SHARDS, pickled=any(name.startswith("torch") for name in chosen))
    mark_published(model)
    to_tensorizer(model, chosen, options)
    rows = lines.medians(lines.recorded(measure(chosen, model, options), out), ("state", "contender"), KEYS)
    print(markdown(rows))
    print("\n".join(verdicts(rows)))
    print(out)


def to_tensorizer(model: Path, chosen: Sequence[str], options: argparse.Namespace) -> None:
    """The same tensors in its own files, where it is installed."""
    if "tensorizer" in chosen and len(list(model.glob("*.tensors"))) < SHARDS:
        argv = [sys.executable, str(DRIVERS / "to_tensorizer.py"), str(model)]
        subprocess.run(argv, env=environ_of(options), capture_output=True, timeout=TIMEOUT_S, check=False)


def measure(chosen: Sequence[str], model: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every run, one line each, in an order that is shuffled anew in every round."""
    shuffle = random.Random(options.seed)
    where = machine.facts(model)
    size_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    digests: set[str] = set()
    absent: set[str] = set()
    runs = [(state, name) for state in options.states.split(",") for name in chosen]
    for number in range(1, options.rounds + 1):
        for state, name in shuffle.sample(runs, len(runs)):
            if name in absent:
                continue
            took = run(name, state, model, options)
            if took is None:
                absent.add(name)
                continue
            digests |= {took.pop("digest")} - {None}
            if len(digests) > 1:
                raise SystemExit(f"error: {name} loaded other tensors")
            run_of = {"state": state, "contender": name, "round": number, "size_bytes": size_bytes}
            peak = {"peak_device_share": took["peak_device_bytes"] / size_bytes}
            line = lines.facts("gpu", where) | run_of | took | shares(took, size_bytes) | peak
            sys.stderr.write(said(line))
            yield line


def run(name: str, state: str, model: Path, options: argparse.Namespace) -> dict[str, Any] | None:
    """One contender in a process of its own; None: it can't be had here."""
    argv = [sys.executable, str(DRIVERS / "gpu_loads.py"), name, state, str(model), options.device]
    done = subprocess.run(argv, env=environ_of(options), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    complained = done.stderr.strip().splitlines()
    if done.returncode == ABSENT:
        sys.stderr.write(f"left out: {name} ({complained[-1] if complained else 'not installed'})\n")
        return None
    if done.returncode != 0 and not name.startswith(("ours", "ceiling")):
        sys.stderr.write(f"left out: {name} failed ({complained[-1] if complained else done.returncode})\n")
        return None
    if done.returncode != 0:
        raise SystemExit(f"error: {name} ended with {done.returncode}: {done.stderr[-2000:]}")
    took: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return took


def environ_of(options: argparse.Namespace) -> dict[str, str]:
    """This interpreter with the contenders' packages, behind its own."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages: Path = options.packages or options.cache / "venv-load" / "lib" / version / "site-packages"
    path = f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}:{packages.resolve()}"
    return {**os.environ, "PYTHONPATH": path}


def markdown(rows: Rows) -> str:
    ordered = sorted(rows.items(), key=lambda item: (STATES.index(item[0][0]), -item[1]["rate_gib_per_s"]))
    return lines.table(HEADINGS, [(state, name, *(f"{row[key]:.2f}" for key in KEYS), row["runs"]) for (state, name), row in ordered])


def verdicts(rows: Rows) -> list[str]:
    """What is to be reached: 0.9 of the slower of disk and bus, and ahead of every contender. Nothing about who did not run."""
    found = []
    for state in STATES:
        rates = {name: row["rate_gib_per_s"] for (at, name), row in rows.items() if at == state}
        for name in ("ours", "ours-reused"):
            if name in rates and BUS in rates and DISK in rates:
                slower = DISK if rates[DISK] < rates[BUS] else BUS
                found.append(_verdict(state, name, rates[name] / rates[slower], slower, 0.9))
        peers = {name: rate for name, rate in rates.items() if not name.startswith(("ours", "ceiling"))}
        if "ours" in rates and peers:
            best = max(peers, key=lambda name: peers[name])
            found.append(_verdict(state, "ours", rates["ours"] / peers[best], f"the best contender ({best})", 1.0))
    return found


def _verdict(state: str, name: str, share: float, other: str, least: float) -> str:
    return f"{'reached' if share >= least else 'MISSED '}  {state}: {name} {share:.2f} × {other} (to reach: {least})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", help=f"separated by commas, of: {', '.join(LOADERS)}")
    parser.add_argument("--size", type=parse_bytes, default=8 * GIB, help=f"of the model, in {SHARDS} shards; default: 8GiB")
    parser.add_argument("--states", default=",".join(STATES), help="of the page cache; default: %(default)s")
    parser.add_argument("--device", default="cuda:0", help="default: %(default)s")
    parser.add_argument("--packages", type=Path, help="site-packages of the contenders; default: bench.load's, where it was run")
    lines.add_options(parser, "gpu", cache="models, on the disk that is measured", rounds=3)
    return parser


if __name__ == "__main__":
    main()
