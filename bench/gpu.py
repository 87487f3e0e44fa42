"""How fast does a checkpoint become tensors on a GPU? Ours against what people use, for every state of the page cache.

python -m bench.gpu                       8 GiB in 4 shards, three rounds
python -m bench.gpu --size 2GiB --rounds 1 --contenders ours,safetensors,ceiling-bus-reused,ceiling-disk-reused
python -m bench.gpu --device cpu --size 64MiB --rounds 1    a rehearsal without a GPU: its figures mean nothing

Needs torch with CUDA and, of other packages, xxhash, safetensors, numpy and psutil; no network. A contender that can't be imported is left
out, and said to be; --packages names a directory that has them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine
from bench.drivers.gpu_loads import ABSENT, LOADERS
from bench.load import SHARDS, STATES, mark_published
from bench.model import make_llama
from modelcache.units import GIB, parse_bytes

DRIVERS = Path(__file__).parent / "drivers"
TIMEOUT_S = 900
HEADINGS = ("state", "contender", "GiB/s", "CPU s/GiB", "host peak ÷ model", "device peak ÷ model", "runs")
KEYS = ("rate_gib_per_s", "cpu_s_per_gib", "peak_rss_share", "peak_device_share")
BUS, DISK = "ceiling-bus-reused", "ceiling-disk-reused"
Rows = Mapping[tuple[str, str], Mapping[str, float]]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    chosen = options.contenders.split(",") if options.contenders else list(LOADERS)
    if unknown := [name for name in chosen if name not in LOADERS]:
        raise SystemExit(f"error: no contender `{unknown[0]}`; there are {', '.join(LOADERS)}")
    if unknown := [state for state in options.states.split(",") if state not in STATES]:
        raise SystemExit(f"error: no state `{unknown[0]}`; there are {', '.join(STATES)}")
    out: Path = options.out or Path(__file__).parent / "results" / f"gpu-{datetime.datetime.now(datetime.UTC):%Y-%m-%d-%H%M}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    model = options.cache / f"llama-{options.size}"
    make_llama(model, options.size, SHARDS, pickled=any(name.startswith("torch") for name in chosen))
    mark_published(model)
    to_tensorizer(model, chosen, options)
    lines = []
    for line in measure(chosen, model, options):
        lines.append(line)
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    rows = medians(lines)
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
            gib = size_bytes / GIB
            line = {
                "bench": "gpu",
                "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "state": state,
                "contender": name,
                "round": number,
                "size_bytes": size_bytes,
                **took,
                "rate_gib_per_s": gib / took["wall_s"],
                "cpu_s_per_gib": took["cpu_s"] / gib,
                "peak_rss_share": took["peak_rss_bytes"] / size_bytes,
                "peak_device_share": took["peak_device_bytes"] / size_bytes,
                "load_1min": machine.load(),
                "machine": where,
            }
            sys.stderr.write(f"{number} {state:5} {name:24} {line['rate_gib_per_s']:7.2f} GiB/s {line['cpu_s_per_gib']:.2f} CPU s/GiB\n")
            yield line


def run(name: str, state: str, model: Path, options: argparse.Namespace) -> dict[str, Any] | None:
    """One contender in a process of its own; None: it can't be had here."""
    argv = [sys.executable, str(DRIVERS / "gpu_loads.py"), name, state, str(model), options.device]
    done = subprocess.run(argv, env=environ_of(options), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    said = done.stderr.strip().splitlines()
    if done.returncode == ABSENT:
        sys.stderr.write(f"left out: {name} ({said[-1] if said else 'not installed'})\n")
        return None
    if done.returncode != 0 and not name.startswith(("ours", "ceiling")):
        sys.stderr.write(f"left out: {name} failed ({said[-1] if said else done.returncode})\n")
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


def medians(lines: Sequence[Mapping[str, Any]]) -> Rows:
    """By state and contender."""
    runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        runs.setdefault((line["state"], line["contender"]), []).append(line)
    return {key: {name: median(line[name] for line in found) for name in KEYS} | {"runs": len(found)} for key, found in runs.items()}


def markdown(rows: Rows) -> str:
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    for (state, name), row in sorted(rows.items(), key=lambda item: (STATES.index(item[0][0]), -item[1]["rate_gib_per_s"])):
        lines.append(f"| {state} | {name} | {' | '.join(f'{row[key]:.2f}' for key in KEYS)} | {row['runs']} |")
    return "\n".join(lines)


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
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--device", default="cuda:0", help="default: %(default)s")
    parser.add_argument("--seed", type=int, help="of the order of contenders; default: random")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"), help="for models, on the disk that is measured: %(default)s")
    parser.add_argument("--packages", type=Path, help="site-packages of the contenders; default: bench.load's, where it was run")
    parser.add_argument("--out", type=Path, help="file that the lines are added to; default: bench/results/gpu-DATE.jsonl")
    return parser


if __name__ == "__main__":
    main()
