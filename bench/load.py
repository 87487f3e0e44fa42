"""How fast does a checkpoint become tensors in host memory? Ours against what people use, for every state of the page cache.

python -m bench.load                       4 GiB in 4 shards, three rounds
python -m bench.load --size 256MiB --rounds 1 --contenders ours,safetensors,ceiling-direct
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import lines, machine
from bench.contenders import DRIVERS, install
from bench.drivers.loads import LOADERS
from bench.model import make_llama
from modelcache.store.layout import FIXED_MTIME_S
from modelcache.units import GIB, parse_bytes

STATES = ("cold", "half", "warm")
SHARDS = 4
TIMEOUT_S = 900
PEERS = (
    "safetensors", "safetensors-clone", "runai", "runai-direct", "runai-buffered", "fastsafetensors", "tensorizer", "tensorizer-4",
    "torch-load", "torch-load-mmap",
)  # fmt: skip
ONLY = {
    "ours-unmapped": ("half", "warm"),
    "runai-direct": ("cold", "half"),
    "runai-buffered": ("half", "warm"),
    "tensorizer": ("cold",),
    "tensorizer-4": ("half", "warm"),
    "ceiling-direct": ("cold", "half"),
    "ceiling-direct-reused": ("cold", "half"),
    "ceiling-buffered": ("half", "warm"),
    "ceiling-buffered-reused": ("half", "warm"),
}
"""Where a setting is worth a run: the others were measured to be better elsewhere, or are the same as another."""
KEYS = ("rate_gib_per_s", "cpu_s_per_gib", "peak_rss_share", "import_s", "fresh_cpu_s_per_gib")
HEADINGS = ("state", "contender", "GiB/s", "CPU s/GiB", "peak ÷ model", "import s", "touching fresh memory, CPU s/GiB", "runs")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    chosen = lines.chosen_of(options.contenders, LOADERS)
    lines.chosen_of(options.states, STATES, what="state")
    options.cache.mkdir(parents=True, exist_ok=True)
    if any(name.startswith(("runai", "fast", "tensorizer")) for name in chosen):
        install(options.cache, ["load"])
    out = lines.file_for("load", options.out)
    model = options.cache / f"llama-{options.size}"
    make_llama(model, options.size, SHARDS, pickled=any(name.startswith("torch") for name in chosen))
    mark_published(model)
    if any(name.startswith("tensorizer") for name in chosen) and len(list(model.glob("*.tensors"))) < SHARDS:
        subprocess.run([sys.executable, str(DRIVERS / "to_tensorizer.py"), str(model)], env=environ_of(options.cache), check=True)
    rows = lines.medians(lines.recorded(measure(chosen, model, options), out), ("state", "contender"), KEYS)
    print(markdown(rows))
    print("\n".join(verdicts(rows)))
    print(out)


def mark_published(model: Path) -> None:
    """Give the files the marks of a snapshot's (`modelcache.loading`): they are mapped then, as those of a URI would be."""
    for path in model.glob("*.safetensors"):
        path.chmod(0o444)
        os.utime(path, (FIXED_MTIME_S, FIXED_MTIME_S))


def measure(chosen: Sequence[str], model: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every run, one line each: one state after the other, contenders in an order that is shuffled anew each time."""
    shuffle = random.Random(options.seed)
    where = machine.facts(options.cache)
    size_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    digests: set[str] = set()
    for number, state in itertools.product(range(1, options.rounds + 1), options.states.split(",")):
        here = [name for name in chosen if state in ONLY.get(name, STATES)]
        for name in shuffle.sample(here, len(here)):
            took = run(name, state, model, options.cache)
            digests |= {took.pop("digest")} - {None}
            if len(digests) > 1:
                raise SystemExit(f"error: {name} loaded other tensors")
            run_of = {"state": state, "contender": name, "round": number, "size_bytes": size_bytes}
            line = lines.facts("load", where) | run_of | took | shares(took, size_bytes)
            sys.stderr.write(said(line))
            yield line


def shares(took: Mapping[str, Any], size_bytes: int) -> lines.Line:
    """What a run took, by the size of what it loaded."""
    gib = size_bytes / GIB
    return {
        "rate_gib_per_s": gib / took["wall_s"],
        "cpu_s_per_gib": took["cpu_s"] / gib,
        "peak_rss_share": took["peak_rss_bytes"] / size_bytes,
    }


def said(line: lines.Line) -> str:
    """One run, as it is told while others are still to come."""
    speed = f"{line['rate_gib_per_s']:7.2f} GiB/s {line['cpu_s_per_gib']:.2f} CPU s/GiB"
    return f"{line['round']} {line['state']:5} {line['contender']:24} {speed}\n"


def run(name: str, state: str, model: Path, cache: Path) -> dict[str, Any]:
    """One contender in a process of its own."""
    argv = [sys.executable, str(DRIVERS / "loads.py"), name, state, str(model)]
    done = subprocess.run(argv, env=environ_of(cache), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: {name} ended with {done.returncode}: {done.stderr[-2000:]}")
    took: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return took


def environ_of(cache: Path) -> dict[str, str]:
    """This interpreter with the contenders' packages."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = cache / "venv-load" / "lib" / version / "site-packages"
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(cache), "PYTHONPATH": f"{packages.resolve()}:{Path.cwd()}"}


Rows = Mapping[tuple[Any, ...], Mapping[str, float]]
"""Medians, by state and contender."""


def markdown(rows: Rows) -> str:
    ordered = sorted(rows.items(), key=lambda item: (STATES.index(item[0][0]), -item[1]["rate_gib_per_s"]))
    return lines.table(HEADINGS, [(state, name, *(f"{row[key]:.2f}" for key in KEYS), row["runs"]) for (state, name), row in ordered])


def verdicts(rows: Rows) -> list[str]:
    """What is to be reached; nothing about contenders that did not run."""
    found = []

    def rate(state: str, name: str) -> float | None:
        row = rows.get((state, name))
        return None if row is None else row["rate_gib_per_s"]

    def compare(state: str, other: str, mine: float, theirs: float | None, share: float) -> None:
        if theirs is not None:
            found.append(_verdict(mine / theirs >= share, f"{state}: {mine / theirs:.2f} × {other} (to reach: {share})"))

    for state in STATES:
        mine = rate(state, "ours")
        peers = {name: value for name in PEERS if (value := rate(state, name)) is not None}
        if mine is None:
            continue
        if peers:
            best = max(peers, key=lambda name: peers[name])
            compare(state, f"the best contender ({best})", mine, peers[best], 1.3 if state == "half" else 1.0)
        if state == "cold":
            compare(state, "direct preadv into fresh memory", mine, rate(state, "ceiling-direct"), 0.95)
            row = rows[state, "ours"]
            what = f"cold: CPU s/GiB into fresh memory (touching it alone took {row['fresh_cpu_s_per_gib']:.2f} then)"
            found.append(_most(what, row["cpu_s_per_gib"], 0.2))
            if (reused := rows.get((state, "ours-reused"))) is not None:
                compare(state, "direct preadv into reused memory", reused["rate_gib_per_s"], rate(state, "ceiling-direct-reused"), 0.95)
                found.append(_most("cold: CPU s/GiB into reused memory", reused["cpu_s_per_gib"], 0.05))
        if state == "warm":
            compare(state, "safetensors, mapped", mine, rate(state, "safetensors"), 0.9)
        found.append(_most(f"{state}: peak memory ÷ model", rows[state, "ours"]["peak_rss_share"], 1.06))
    return found


def _most(what: str, value: float, limit: float) -> str:
    return _verdict(value <= limit, f"{what}: {value:.2f} (at most: {limit})")


def _verdict(reached: bool, text: str) -> str:
    return f"{'reached' if reached else 'MISSED '}  {text}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", help=f"separated by commas, of: {', '.join(LOADERS)}")
    parser.add_argument("--size", type=parse_bytes, default=4 * GIB, help=f"of the model, in {SHARDS} shards; default: 4GiB")
    parser.add_argument("--states", default=",".join(STATES), help="of the page cache; default: %(default)s")
    lines.add_options(parser, "load", cache="models and environments", rounds=3)
    return parser


if __name__ == "__main__":
    main()
