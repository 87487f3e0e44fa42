"""What do questions cost on a large store? `ls`, `df`, `gc --dry-run` and `show`, by the command line, and opening it; each a new process.

python -m bench.store                       100 and 1,000 models of 100 files each
python -m bench.store --models 10,30
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine
from bench.lines import add_options, facts, file_for, record
from bench.measure import clocked
from modelcache.abc.ingest import Route
from modelcache.abc.store import Limits
from modelcache.store.store import LocalStore
from modelcache.testing.servers.process import program
from modelcache.testing.store_filling import digest_of, manifest_of, ref_of, table_of, wanted, write_chunks

FILES = 100
FILE_BYTES = 512
"""What a question costs depends on how many blobs there are and not on their size."""
LIMIT_S = 2.0
GROWTH_LIMIT_BYTES_PER_BLOB = 64
"""Memory counts as flat when a further blob costs less than this at the peak, all of its model's line in `ls` counted in: 6 MiB at 100,000.

Less than any Python object with a digest in it takes (the 64 hex digits alone 113 bytes, in a dictionary 200 and more), so nothing can be
kept for each blob in this way; more than the packed links that sums over snapshots need (`modelcache/store/links.py`: 20 bytes, 23 with the
slack of a growing array) and a 100th of what a model of 100 files has in the answer (some KiB).
"""
NO_LIMITS = Limits(max_bytes=None, high_watermark=1.0, low_watermark=1.0)
OVER_CAP = "gc --dry-run, over the cap"
"""The store may be half as large as it is: half of the models are chosen to go."""
HEADINGS = ("models", "blobs", "question", "wall s", "CPU s", "peak MiB")
OPEN = "import sys; from modelcache.cache import ModelCache; ModelCache(sys.argv[1]).close()"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    out = file_for("store", options.out)
    options.cache.mkdir(parents=True, exist_ok=True)
    where = machine.facts(options.cache)
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    lines = []
    for models in sorted(map(int, options.models.split(","))):
        for line in measure(models, options.cache, options.times):
            line |= facts("store", where)
            lines.append(line)
            record(line, out)
            shown = (line["wall_s"], line["cpu_s"], line["peak_rss_bytes"] / (1 << 20))
            print(f"| {models} | {line['blobs']} | {line['question']} | {' | '.join(f'{value:.2f}' for value in shown)} |", flush=True)
    print("\n".join(verdicts(lines)))
    print(out)


def measure(models: int, cache: Path, times: int) -> list[dict[str, Any]]:
    """Fill a new store and ask each question in `times` new processes; medians."""
    root = cache / "bench-scratch"
    shutil.rmtree(root, ignore_errors=True)
    try:
        started_s = time.monotonic()
        fill_store(root, models)
        filled_s = time.monotonic() - started_s
        environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(cache), "MODELCACHE_ROOT": str(root)} | machine.NO_WATERMARKS
        half = {"MODELCACHE_MAX_BYTES": str(LocalStore(root, NO_LIMITS).usage().blobs_bytes // 2)}
        return [
            {"models": models, "blobs": models * FILES, "question": question, "fill_s": filled_s}
            | asked(argv, environ | (half if question == OVER_CAP else {}), cache, times)
            for question, argv in questions(root).items()
        ]
    finally:
        shutil.rmtree(root, ignore_errors=True)


def questions(root: Path) -> Mapping[str, list[str]]:
    command = program("modelcache")
    return {
        "open": [sys.executable, "-c", OPEN, str(root)],
        "ls": [command, "ls", "--json"],
        "df": [command, "df", "--json"],
        "gc --dry-run": [command, "gc", "--dry-run", "--json"],
        OVER_CAP: [command, "gc", "--dry-run", "--json"],
        "show": [command, "show", uri_of(0), "--json"],
    }


def asked(argv: list[str], environ: Mapping[str, str], cache: Path, times: int) -> dict[str, float]:
    empty = cache / "bench-nothing"
    empty.mkdir(exist_ok=True)
    log = cache / "store.log"
    answers = [clocked(argv, environ, empty, log) for _ in range(times)]
    if bad := next((answer for answer in answers if answer["exit_status"] != 0), None):
        raise SystemExit(f"error: {argv} ended with {bad['exit_status']}; see {log}")
    return {
        "wall_s": median(answer["wall_to_exit_s"] for answer in answers),
        "cpu_s": median(answer["user_s"] + answer["system_s"] for answer in answers),
        "peak_rss_bytes": median(answer["peak_rss_bytes"] for answer in answers),
        "times": times,
    }


def fill_store(root: Path, models: int) -> None:
    """`models` snapshots of FILES different files."""
    store = LocalStore(root, NO_LIMITS)
    for model in range(models):
        files = {f"part-{index:03}.bin": f"{model} {index} ".encode().ljust(FILE_BYTES, b".") for index in range(FILES)}
        ref = ref_of(files, uri=uri_of(model))
        ingest = store.ingest(ref.key, wanted(files))
        for file in ingest.files:
            write_chunks(file, files[file.path], route=Route.BUFFERED)
        ingest.flush(ingest.files)
        for file in ingest.files:
            file.complete(digest_of(files[file.path]), table_of(files[file.path]))
        ingest.publish(manifest_of(files), ref)


def uri_of(model: int) -> str:
    return f"s3://models/family/{model:05}"


def verdicts(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is to be reached: every question under LIMIT_S, and memory that doesn't grow with the store."""
    said = [
        f"MISSED   {line['question']} on {line['blobs']} blobs took {line['wall_s']:.2f} s (to stay under: {LIMIT_S:g})"
        for line in lines
        if line["wall_s"] >= LIMIT_S
    ]
    least, most = min(line["blobs"] for line in lines), max(line["blobs"] for line in lines)
    for question in dict.fromkeys(line["question"] for line in lines):
        peaks = {line["blobs"]: line["peak_rss_bytes"] for line in lines if line["question"] == question}
        if most > least and (growth := (peaks[most] - peaks[least]) / (most - least)) > GROWTH_LIMIT_BYTES_PER_BLOB:
            said.append(
                f"MISSED   {question}: {growth:.0f} bytes of memory per further blob (to stay under: {GROWTH_LIMIT_BYTES_PER_BLOB})"
            )
    return said or [f"reached  every question under {LIMIT_S:g} s, memory flat: a further blob under {GROWTH_LIMIT_BYTES_PER_BLOB} bytes"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="100,1000", help=f"of {FILES} files each, separated by commas; default: %(default)s")
    parser.add_argument("--times", type=int, default=3, help="new processes per question; default: %(default)s")
    add_options(parser, "store", cache="the store")
    return parser


if __name__ == "__main__":
    main()
