"""How often is a byte read when several ranks of a node load their parts of one model, and how long does it take?

python -m bench.ranks                       2 GiB in 4 shards, three rounds of 1, 2 and 4 ranks
python -m bench.ranks --size 256MiB --rounds 1 --worlds 2
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import lines, machine
from bench.drivers.loads import set_state
from bench.drivers.ranks import LOADERS
from bench.model import make_llama
from bench.rank_processes import Answer, answers_of, sums
from modelcache.units import GIB, parse_bytes

SHARDS = 4
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
            line = lines.facts("ranks", where) | {"contender": name, "world": world, "round": number, "wall_s": wall_s}
            line |= sums(answers, size_bytes)
            sys.stderr.write(f"{number} {world} ranks {name:12} {line['read_share']:.3f} × read, {wall_s:.2f} s\n")
            yield line


def run(name: str, world: int, model: Path, files: Sequence[Path]) -> list[Answer]:
    """All ranks; what each says."""
    ranks = (["-m", "bench.drivers.ranks", name, str(rank), str(world), str(model), f"bench-{os.getpid()}"] for rank in range(world))
    kept_bytes = sum(path.stat().st_size for path in files) * (2 + world) // 2
    return answers_of(ranks, os.environ, lambda: set_state(model, list(files), "cold"), kept_bytes=kept_bytes)


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
