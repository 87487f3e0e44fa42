"""How fast, at what cost in CPU and memory, does a model get from a server to this disk? Ours against what people use.

python -m bench.fetch                                     everything: about half an hour
python -m bench.fetch --quick                             256 MiB, one round, ours and the ceilings: under a minute
python -m bench.fetch --contenders ours-auto,s5cmd --servers nginx --rounds 5
python -m bench.fetch --servers hub,gcs --series shared   the Hub and Google Cloud Storage, with their own clients
python -m bench.fetch --servers nginx-tls,hub-tls,gcs-tls --series shared
python -m bench.fetch --files 10000 --size 256MiB --servers nginx --series shared
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine, report
from bench.contenders import Contender, Kind, contenders, install
from bench.measure import Place, RunFailed, run, sha256
from bench.model import make_model
from bench.origins import PREFIX, Served, nginx_with, seaweedfs_with
from bench.origins_gcs import gcs_with
from bench.origins_hub import hub_with
from bench.pictures import drawn
from modelcache.testing.servers import Certificate
from modelcache.units import GIB, MIB, parse_bytes

SERVERS = ("nginx", "seaweedfs")
ALL_SERVERS = tuple(f"{name}{tls}" for name in (*SERVERS, "hub", "gcs") for tls in ("", "-tls"))
SERIES = ("shared", "pinned")
"""`shared`: client and server have all cores. `pinned`: the server has the first alone, the client the last."""
DEFAULT_FILES = 4
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    contenders: tuple[Contender, ...]
    servers: tuple[str, ...]
    series: tuple[str, ...]
    rounds: int
    size_bytes: int
    files: int
    seed: int

    @property
    def bucket(self) -> str:
        return f"bench-{self.size_bytes}" if self.files == DEFAULT_FILES else f"bench-{self.size_bytes}-{self.files}"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    plan = _plan(options)
    options.cache.mkdir(parents=True, exist_ok=True)
    install(options.cache, (each.venv for each in plan.contenders))
    out: Path = options.out or HERE / "results" / f"fetch-{datetime.datetime.now(datetime.UTC):%Y-%m-%d-%H%M}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for line in measure(plan, Place(options.cache, (options.scratch or options.cache) / "bench-scratch")):
        lines.append(line)
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    for table in report.tables(lines):
        print(report.markdown(table))
        print("\n".join(report.verdicts(table)), end="\n\n")
    print(out)
    if options.plot:
        print(drawn(options.cache, out))


def measure(plan: Plan, place: Place) -> Iterator[dict[str, Any]]:
    """Every run, one line each, in an order that is shuffled anew in every round."""
    cores = sorted(os.sched_getaffinity(0))
    shuffle = random.Random(plan.seed)
    cache = place.cache
    model = cache / "nginx" / plan.bucket / PREFIX
    make_model(model, plan.size_bytes, plan.files)
    digests = {path.name: sha256(path) for path in model.iterdir()}
    versions = {each.name: each.version(cache) for each in plan.contenders}
    place.scratch.parent.mkdir(parents=True, exist_ok=True)
    where = machine.facts(place.scratch.parent)
    for server in plan.servers:
        with _served(server, cache, plan.bucket, digests) as served:
            able = [each for each in plan.contenders if each.can_read(served)]
            for series in plan.series:
                pinned = series == "pinned"
                served.pin({cores[0]} if pinned else set(cores))
                for number in range(1, plan.rounds + 1):
                    for contender in shuffle.sample(able, len(able)):
                        took = run(contender, served, place, {cores[-1]} if pinned else None, digests if number == 1 else None)
                        _say(server, series, number, contender, took)
                        yield {
                            "bench": "fetch",
                            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                            "server": server,
                            "series": series,
                            "contender": contender.name,
                            "kind": contender.kind,
                            "checks": contender.checks,
                            "version": versions[contender.name],
                            "round": number,
                            "seed": plan.seed,
                            "size_bytes": plan.size_bytes,
                            "files": plan.files,
                            **took,
                            "load_1min": machine.load(),
                            "machine": where,
                        }


def _served(server: str, cache: Path, bucket: str, digests: dict[str, str]) -> AbstractContextManager[Served]:
    name, _, tls = server.partition("-")
    certificate = Certificate.make(cache.resolve() / "tls") if tls else None
    model = cache / "nginx" / bucket / PREFIX
    if name == "nginx":
        return nginx_with(cache / "nginx", bucket, certificate)
    if name == "hub":
        return hub_with(cache / "nginx", bucket, digests, certificate)
    if name == "gcs":
        return gcs_with(cache / "gcs", bucket, model, certificate)
    return seaweedfs_with(cache / "seaweedfs", bucket, model, certificate)


def _say(server: str, series: str, number: int, contender: Contender, took: dict[str, Any]) -> None:
    sys.stderr.write(
        f"{server} {series} {number}: {contender.name:20} {took['rate_gib_per_s']:.3f} GiB/s ({took['rate_to_exit_gib_per_s']:.3f} to exit)"
        f", {took['cpu_s_per_gib']:.2f} CPU s/GiB, {took['peak_rss_bytes'] / MIB:.0f} MiB\n"
    )


# -- options --------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fetch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contenders", help=f"names or kinds, separated by commas, of: {', '.join(contenders())}")
    parser.add_argument("--servers", default=",".join(SERVERS), help=f"of {', '.join(ALL_SERVERS)}; default: %(default)s")
    parser.add_argument("--series", default=",".join(SERIES), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--size", type=parse_bytes, help="of the model; default: 2GiB")
    parser.add_argument("--files", type=int, default=DEFAULT_FILES, help="of the model; default: %(default)s")
    parser.add_argument("--seed", type=int, help="of the order of contenders; default: random")
    parser.add_argument("--quick", action="store_true", help="256MiB, one round, ours and the ceilings, one series")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"), help="for models, servers' data, environments: %(default)s")
    parser.add_argument("--scratch", type=Path, help="directory on the disk to be measured; default: the cache")
    parser.add_argument("--out", type=Path, help="file that the lines are added to; default: bench/results/fetch-DATE.jsonl")
    parser.add_argument("--plot", action=argparse.BooleanOptionalAction, default=True, help="draw them, beside the lines")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    quick = options.quick
    asked = options.contenders or ("ours,ceiling" if quick else "ours,peer,ceiling,bound")
    return Plan(
        contenders=_chosen(asked),
        servers=_among(ALL_SERVERS, options.servers),
        series=_among(SERIES, "shared" if quick else options.series),
        rounds=options.rounds or (1 if quick else 3),
        size_bytes=options.size or (256 * MIB if quick else 2 * GIB),
        files=options.files,
        seed=random.randrange(2**32) if options.seed is None else options.seed,
    )


def _chosen(names: str) -> tuple[Contender, ...]:
    known = contenders()
    chosen: dict[str, Contender] = {}
    for name in names.split(","):
        fitting = {each.name: each for each in known.values() if name in (each.name, each.kind)}
        if not fitting:
            raise SystemExit(f"no contender `{name}`; there are {', '.join(known)}, and the kinds {', '.join(Kind)}")
        chosen |= fitting
    return tuple(chosen.values())


def _among(known: tuple[str, ...], names: str) -> tuple[str, ...]:
    chosen = tuple(names.split(","))
    if unknown := set(chosen) - set(known):
        raise SystemExit(f"no `{', '.join(sorted(unknown))}`; there are {', '.join(known)}")
    return chosen


if __name__ == "__main__":
    try:
        main()
    except RunFailed as failure:
        raise SystemExit(f"error: {failure}") from None
