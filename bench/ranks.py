"""How often is a byte read when several ranks of a node load their parts of one model, and how long does it take?

python -m bench.ranks                       2 GiB in 4 shards, three rounds of 1, 2 and 4 ranks
python -m bench.ranks --size 256MiB --rounds 1 --worlds 2
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import lines, machine
from bench.drivers.keeper import kept
from bench.drivers.loads import set_state
from bench.drivers.ranks import LOADERS
from bench.model import make_llama
from modelcache.units import GIB, parse_bytes

SHARDS = 4
TIMEOUT_S = 600
READ_SHARE = 1.05
HEADINGS = ("ranks", "contender", "read ÷ model", "s", "CPU s/GiB of model", "memory ÷ model", "runs")
KEYS = ("read_share", "wall_s", "cpu_s_per_gib", "peak_share")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    chosen = lines.chosen_of(options.contenders, LOADERS)
    options.cache.mkdir(parents=True, exist_ok=True)
    out = lines.file_for("ranks", options.out)
    model = options.cache / f"llama-{options.size}"
    make_llama(model, options.size, SHARDS, pickled=False)
    rows = lines.medians(lines.recorded(measure(chosen, model, options), out), ("world", "contender"), KEYS)
    print(markdown(rows))
    print("\n".join(verdicts(rows)))
    print(out)


def measure(chosen: Sequence[str], model: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every run, one line each, from a cold page cache, in an order that is shuffled anew in every round."""
    shuffle = random.Random(options.seed)
    where = machine.facts(options.cache)
    files = sorted(model.glob("*.safetensors"))
    size_bytes = sum(path.stat().st_size for path in files)
    runs = [(world, name) for world in map(int, options.worlds.split(",")) for name in chosen]
    touched: defaultdict[int, set[int]] = defaultdict(set)
    for number in range(1, options.rounds + 1):
        for world, name in shuffle.sample(runs, len(runs)):
            answers = run(name, world, model, files)
            touched[world].add(sum(answer["touched"] for answer in answers))
            if len(touched[world]) > 1:
                raise SystemExit(f"error: {name} loaded other tensors")
            wall_s = max(answer["ended_s"] for answer in answers) - min(answer["started_s"] for answer in answers)
            cpu_s = sum(answer["cpu_s"] for answer in answers)
            line = lines.facts("ranks", where) | {
                "contender": name,
                "world": world,
                "round": number,
                "size_bytes": size_bytes,
                "wall_s": wall_s,
                "cpu_s": cpu_s,
                "cpu_s_per_gib": cpu_s * GIB / size_bytes,
                "read_share": sum(answer["read_bytes"] for answer in answers) / size_bytes,
                "peak_share": sum(answer["peak_bytes"] for answer in answers) / size_bytes,
                "part_bytes": [answer["part_bytes"] for answer in answers],
                "ways": [answer["ways"] for answer in answers],
            }
            sys.stderr.write(f"{number} {world} ranks {name:12} {line['read_share']:.3f} × read, {wall_s:.2f} s\n")
            yield line


def run(name: str, world: int, model: Path, files: Sequence[Path]) -> list[dict[str, Any]]:
    """All ranks, each a process that has imported what it needs before any begins; what each says."""
    with ExitStack() as ends:
        ranks = []
        for rank in range(world):
            argv = [sys.executable, "-m", "bench.drivers.ranks", name, str(rank), str(world), str(model), f"bench-{os.getpid()}"]
            environ = {**os.environ, "OMP_NUM_THREADS": "1"}  # as torchrun has it
            process = ends.enter_context(subprocess.Popen(argv, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            ends.callback(process.kill)
            ranks.append(process)
        for process in ranks:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise SystemExit(f"error: {name} ended before it began")
        set_state(model, list(files), "cold")
        ends.enter_context(kept(sum(path.stat().st_size for path in files) * (2 + world) // 2))
        for process in ranks:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=TIMEOUT_S)[0] for process in ranks]
        if any(process.returncode for process in ranks):
            raise SystemExit(f"error: {name} failed with {world} ranks")
        return [json.loads(each) for each in said]


Rows = Mapping[tuple[Any, ...], Mapping[str, float]]
"""Medians, by number of ranks and contender."""


def markdown(rows: Rows) -> str:
    return lines.table(HEADINGS, [(*key, *(f"{row[name]:.2f}" for name in KEYS), row["runs"]) for key, row in sorted(rows.items())])


def verdicts(rows: Rows) -> list[str]:
    """What is to be reached."""
    found = []
    for (world, name), row in sorted(rows.items()):
        if name == "together":
            reached = "reached" if row["read_share"] <= READ_SHARE else "MISSED "
            found.append(f"{reached}  {world} ranks: {row['read_share']:.3f} × the model read (at most: {READ_SHARE})")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ranks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contenders", default=",".join(LOADERS), help="separated by commas; default: %(default)s")
    parser.add_argument("--worlds", default="1,2,4", help="numbers of ranks; default: %(default)s")
    parser.add_argument("--size", type=parse_bytes, default=2 * GIB, help=f"of the model, in {SHARDS} shards; default: 2GiB")
    lines.add_options(parser, "ranks", cache="models", rounds=3)
    return parser


if __name__ == "__main__":
    main()
