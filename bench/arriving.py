"""How long until the ranks of a node have their parts of a model that only its origin has? In a group that begins at once, in one that
waits until all of it is here, and each rank alone.

python -m bench.arriving                       2 GiB in 4 shards, two rounds of 2 and 4 ranks
python -m bench.arriving --size 256MiB --rounds 1 --worlds 2
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import lines, machine
from bench.drivers.arriving import CONTENDERS
from bench.measure import Place
from bench.model import make_llama
from bench.origins import PREFIX, Served, seaweedfs_with
from bench.rank_processes import Answer, answers_of, sums
from modelcache.units import GIB, parse_bytes

SHARDS = 4
READ_SHARE = 1.05
NEAR = 1.1
"""The total may be so many times that of a group which waits."""
HEADINGS = ("ranks", "contender", "first tensor s", "total s", "CPU s/GiB of model", "read ÷ model", "memory ÷ model", "runs")
KEYS = ("first_s", "total_s", "cpu_s_per_gib", "read_share", "peak_share")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    chosen = lines.chosen_of(options.contenders, CONTENDERS)
    options.cache.mkdir(parents=True, exist_ok=True)
    out = lines.file_for("arriving", options.out)
    place = Place(options.cache, options.cache / "bench-scratch-arriving")
    rows = lines.medians(lines.recorded(measure(chosen, options, place), out), ("world", "contender"), KEYS)
    print(markdown(rows))
    print("\n".join(verdicts(rows)))
    print(out)


def measure(chosen: Sequence[str], options: argparse.Namespace, place: Place) -> Iterator[dict[str, Any]]:
    """Every run, one line each, from an empty store, in an order that is shuffled anew in every round."""
    shuffle = random.Random(options.seed)
    bucket = f"stream-{options.size}"
    model = place.cache / "nginx" / bucket / PREFIX
    make_llama(model, options.size, SHARDS, pickled=False)
    where = machine.facts(place.cache)
    runs = [(world, name) for world in map(int, options.worlds.split(",")) for name in chosen]
    touched: defaultdict[int, set[int]] = defaultdict(set)
    with seaweedfs_with(place.cache / "seaweedfs", bucket, model) as served:
        for number in range(1, options.rounds + 1):
            for world, name in shuffle.sample(runs, len(runs)):
                server_before_s = served.cpu_s()
                answers = run(name, world, served, model, place)
                touched[world].add(sum(answer["touched"] for answer in answers))
                if len(touched[world]) > 1:
                    raise SystemExit(f"error: {name} loaded other tensors")
                line = lines.facts("arriving", where) | {"contender": name, "world": world, "round": number}
                line |= taken(answers, served.size_bytes) | {"server_cpu_s": served.cpu_s() - server_before_s}
                sys.stderr.write(f"{number} {world} ranks {name:12} {line['total_s']:.2f} s, first {line['first_s']:.2f} s\n")
                yield line


def taken(answers: Sequence[Answer], size_bytes: int) -> dict[str, Any]:
    """By all ranks together, from the beginning of the first to the end of the last; the first tensor is the last rank's."""
    started_s = min(answer["started_s"] for answer in answers)
    return sums(answers, size_bytes) | {
        "first_s": max(answer["first_s"] for answer in answers) - started_s,
        "total_s": max(answer["ended_s"] for answer in answers) - started_s,
        "phases": [answer["phases"] for answer in answers],
    }


def run(name: str, world: int, served: Served, model: Path, place: Place) -> list[Answer]:
    """All ranks, over one empty store; what each says."""
    root = place.scratch / "store"
    shutil.rmtree(place.scratch, ignore_errors=True)
    root.mkdir(parents=True)
    order = {"uri": served.uri, "model": str(model.resolve()), "root": str(root.resolve()), "group": f"bench-{os.getpid()}"}
    environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(place.scratch)}
    environ |= {**served.environ, **machine.NO_WATERMARKS, "BENCH_ARRIVING": json.dumps(order)}

    def prepare() -> None:
        served.warm()
        os.sync()

    try:
        ranks = (["-m", "bench.drivers.arriving", name, str(rank), str(world)] for rank in range(world))
        return answers_of(ranks, environ, prepare, kept_bytes=served.size_bytes * (3 + world) // 2)
    finally:
        shutil.rmtree(place.scratch, ignore_errors=True)


Rows = Mapping[tuple[Any, ...], Mapping[str, float]]
"""Medians, by number of ranks and contender."""


def markdown(rows: Rows) -> str:
    return lines.table(HEADINGS, [(*key, *(f"{row[name]:.2f}" for name in KEYS), row["runs"]) for key, row in sorted(rows.items())])


def verdicts(rows: Rows) -> list[str]:
    """What is to be reached."""
    found = []
    for (world, name), row in sorted(rows.items()):
        if name != "group":
            continue
        found.append(
            _verdict(row["read_share"] <= READ_SHARE, f"{world} ranks: {row['read_share']:.3f} × the model read (at most: {READ_SHARE})")
        )
        waits = rows.get((world, "group-waits"))
        if waits is not None:
            share = row["total_s"] / waits["total_s"]
            found.append(_verdict(share <= NEAR, f"{world} ranks: {share:.2f} × the time of a group that waits (at most: {NEAR})"))
            first = row["first_s"] / waits["first_s"]
            found.append(_verdict(first <= 0.5, f"{world} ranks: the first tensor after {first:.2f} × its time (at most: 0.5)"))
    return found


def _verdict(reached: bool, what: str) -> str:
    return f"{'reached' if reached else 'MISSED '}  {what}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.arriving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="separated by commas; default: %(default)s")
    parser.add_argument("--worlds", default="2,4", help="numbers of ranks; default: %(default)s")
    parser.add_argument("--size", type=parse_bytes, default=2 * GIB, help=f"of the model, in {SHARDS} shards; default: 2GiB")
    lines.add_options(parser, "arriving", cache="models and the server's files", rounds=2)
    return parser


if __name__ == "__main__":
    main()
