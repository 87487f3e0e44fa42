"""How long until a model that only its origin has is tensors in host memory? Loaded as it arrives, against downloaded and then loaded.

python -m bench.stream                       2 GiB in 4 shards, two rounds
python -m bench.stream --size 256MiB --rounds 1 --contenders ours-stream,ours-then-load
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine
from bench.contenders import DRIVERS, contenders, install
from bench.drivers.streams import CONTENDERS
from bench.lines import add_options, chosen_of, facts, file_for, recorded
from bench.measure import Place, sha256
from bench.memory import warm_free_pages
from bench.model import make_llama
from bench.origins import PREFIX, Served, seaweedfs_with
from bench.origins_hub import hub_with
from modelcache.units import GIB, parse_bytes

SHARDS = 4
TIMEOUT_S = 900
DOWNLOADERS = {"s5cmd-then-load": "s5cmd", "aws-then-load": "aws-s3-cp"}
"""By contender, who of `bench.contenders` downloads for it."""
VENVS = {"s5cmd-then-load": "s5cmd", "aws-then-load": "awscli", "hub-then-load": "huggingface_hub"}
HEADINGS = ("server", "contender", "first tensor s", "total s", "GiB/s", "CPU s/GiB", "peak MiB", "runs")
FIRST_TENSOR_S = 1.0
NEAR = 1.15
"""The total may be so many times the longer half."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    chosen = chosen_of(options.contenders, CONTENDERS)
    options.cache.mkdir(parents=True, exist_ok=True)
    install(options.cache, {VENVS[name] for name in chosen if name in VENVS})
    out = file_for("stream", options.out)
    place = Place(options.cache, (options.scratch or options.cache) / "bench-scratch-stream")
    rows = medians(recorded(measure(chosen, options, place), out))
    print(markdown(rows))
    print("\n".join(verdicts(rows)))
    print(out)


def measure(chosen: Sequence[str], options: argparse.Namespace, place: Place) -> Iterator[dict[str, Any]]:
    """Every run, one line each, in an order that is shuffled anew in every round."""
    shuffle = random.Random(options.seed)
    bucket = f"stream-{options.size}"
    model = place.cache / "nginx" / bucket / PREFIX
    make_llama(model, options.size, SHARDS, pickled=False)
    place.scratch.parent.mkdir(parents=True, exist_ok=True)
    where = machine.facts(place.scratch.parent)
    digests: set[str] = set()
    with ExitStack() as running:
        servers: dict[str, Served] = {}
        for name in chosen:
            kind = "hub" if name.startswith("hub") else "seaweedfs"
            if kind not in servers:
                servers[kind] = running.enter_context(_served(kind, place.cache, bucket, model))
        for number in range(1, options.rounds + 1):
            for name in shuffle.sample(chosen, len(chosen)):
                served = servers["hub" if name.startswith("hub") else "seaweedfs"]
                took = run(name, served, place)
                digests |= {took.pop("digest")} - {None}
                if len(digests) > 1:
                    raise SystemExit(f"error: {name} loaded other tensors")
                gib = served.size_bytes / GIB
                line = facts("stream", where) | {
                    "server": served.server,
                    "contender": name,
                    "round": number,
                    "size_bytes": served.size_bytes,
                    **took,
                    "rate_gib_per_s": gib / took["total_s"],
                    "cpu_s_per_gib": took["cpu_s"] / gib,
                }
                sys.stderr.write(f"{number} {name:18} {took['total_s']:6.2f} s, first {took['first_tensor_s'] or 0:5.2f} s\n")
                yield line


def _served(kind: str, cache: Path, bucket: str, model: Path) -> Any:
    if kind == "hub":
        return hub_with(cache / "nginx", bucket, {path.name: sha256(path) for path in model.iterdir()})
    return seaweedfs_with(cache / "seaweedfs", bucket, model)


def run(name: str, served: Served, place: Place) -> dict[str, Any]:
    """One contender in a process of its own, from an empty directory; what it took, and the server's CPU seconds."""
    shutil.rmtree(place.scratch, ignore_errors=True)
    directory = place.scratch / "model"
    directory.mkdir(parents=True)
    order: dict[str, Any] = {"uri": served.uri, "repo": served.bucket, "size_bytes": served.size_bytes}
    if name in DOWNLOADERS:
        command = contenders()[DOWNLOADERS[name]].command(place.cache, served, directory)
        order |= {
            "argv": [str(Path(each).absolute()) if each.startswith(".") else each for each in command.argv],
            "environ": command.environ,
        }
    environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(place.scratch), "PYTHONPATH": str(Path.cwd())}
    environ |= {**served.environ, **machine.NO_WATERMARKS, "BENCH_STREAM": json.dumps(order)}
    if name in VENVS and name not in DOWNLOADERS:
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        packages = place.cache / f"venv-{VENVS[name]}" / "lib" / version / "site-packages"
        environ["PYTHONPATH"] = f"{packages.resolve()}:{Path.cwd()}"
    try:
        served.warm()
        os.sync()
        warm_free_pages(place.scratch / "hole", served.size_bytes + served.size_bytes // 4)
        server_before_s = served.cpu_s()
        took = _driven(name, directory, environ)
        return took | {"server_cpu_s": served.cpu_s() - server_before_s}
    finally:
        shutil.rmtree(place.scratch, ignore_errors=True)


def _driven(name: str, directory: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    argv, pipe = [sys.executable, str(DRIVERS / "streams.py"), name, str(directory)], subprocess.PIPE
    with subprocess.Popen(argv, env=environ, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as driver:
        try:
            said, complained = driver.communicate(timeout=TIMEOUT_S)
        except BaseException:
            os.killpg(driver.pid, signal.SIGKILL)  # it leads a session of its own: with it ends what it started
            raise
    if driver.returncode != 0:
        raise SystemExit(f"error: {name} ended with {driver.returncode}: {complained[-2000:]}")
    took: dict[str, Any] = json.loads(said.splitlines()[-1])
    return took


Rows = Mapping[tuple[str, str], Mapping[str, float | None]]


def medians(lines: Sequence[Mapping[str, Any]]) -> Rows:
    """By server and contender."""
    runs: defaultdict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        runs[line["server"], line["contender"]].append(line)
    keys = ("first_tensor_s", "total_s", "rate_gib_per_s", "cpu_s_per_gib", "peak_rss_bytes", "downloaded_s")
    return {key: {name: _median(found, name) for name in keys} | {"runs": len(found)} for key, found in runs.items()}


def _median(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [line[key] for line in lines if line.get(key) is not None]
    return median(values) if values else None


def markdown(rows: Rows) -> str:
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    for (server, name), row in sorted(rows.items(), key=lambda item: (item[0][0], item[1]["total_s"])):
        peak = row["peak_rss_bytes"]
        shown = (row["first_tensor_s"], row["total_s"], row["rate_gib_per_s"], row["cpu_s_per_gib"])
        figures = " | ".join("–" if value is None else f"{value:.2f}" for value in shown)
        lines.append(f"| {server} | {name} | {figures} | {(peak or 0) / 2**20:.0f} | {row['runs']} |")
    return "\n".join(lines)


def verdicts(rows: Rows) -> list[str]:
    """What is to be reached; nothing about contenders that did not run."""
    found = []
    for server, mine, ending in (("seaweedfs", "ours-stream", "-then-load"), ("hub", "hub-ours-stream", "-then-load")):
        row = rows.get((server, mine))
        if row is None:
            continue
        first_s, total_s = row["first_tensor_s"] or 0.0, row["total_s"] or 0.0
        found.append(_verdict(first_s <= FIRST_TENSOR_S, f"{server}: first tensor after {first_s:.2f} s (at most: {FIRST_TENSOR_S})"))
        others = {name: each["total_s"] or 0.0 for (where, name), each in rows.items() if where == server and name.endswith(ending)}
        for name, other_s in sorted(others.items()):
            found.append(_verdict(total_s <= other_s, f"{server}: {total_s / other_s:.2f} × the time of {name} (at most: 1)"))
        half = _longer_half(rows, server)
        if half is not None:
            found.append(_verdict(total_s <= NEAR * half, f"{server}: {total_s / half:.2f} × the longer half (at most: {NEAR})"))
    return found


def _longer_half(rows: Rows, server: str) -> float | None:
    """Of bringing the model and loading it, by our own engine, what took longer."""
    alone, after = rows.get((server, "ours-download")), rows.get((server, "ours-then-load"))
    if alone is None or after is None or alone["total_s"] is None:
        return None
    return max(alone["total_s"], (after["total_s"] or 0.0) - (after["downloaded_s"] or 0.0))


def _verdict(reached: bool, text: str) -> str:
    return f"{'reached' if reached else 'MISSED '}  {text}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.stream", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contenders", help=f"separated by commas, of: {', '.join(CONTENDERS)}")
    parser.add_argument("--size", type=parse_bytes, default=2 * GIB, help=f"of the model, in {SHARDS} shards; default: 2GiB")
    parser.add_argument("--scratch", type=Path, help="on the disk that is measured; default: the cache")
    add_options(parser, "stream", cache="models, servers' data and environments", rounds=2)
    return parser


if __name__ == "__main__":
    main()
