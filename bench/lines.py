"""Lines of results: the file that a bench adds them to, what each says of its run, and medians and tables of many."""

from __future__ import annotations

import argparse
import datetime
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine

Line = dict[str, Any]


def add_options(parser: argparse.ArgumentParser, bench: str, *, cache: str, rounds: int | None = None) -> None:
    """`--cache` (for what: `cache`) and `--out`; with a number of rounds, which are shuffled, `--rounds` and `--seed` as well."""
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
        parser.add_argument("--seed", type=int, help="of the order of contenders; default: random")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"), help=f"for {cache}: %(default)s")
    parser.add_argument("--out", type=Path, help=f"file that lines are added to; default: bench/results/{bench}-DATE.jsonl")


def chosen_of(asked: str | None, known: Iterable[str], *, what: str = "contender") -> list[str]:
    """Names separated by commas; None: all that are known.

    Raises:
        SystemExit: one of them isn't known; it names those that are.
    """
    names = list(known)
    chosen = names if asked is None else asked.split(",")
    if unknown := [name for name in chosen if name not in names]:
        raise SystemExit(f"error: no {what} `{unknown[0]}`; there are {', '.join(names)}")
    return chosen


def file_for(bench: str, asked: Path | None) -> Path:
    """The file that was asked for, else one named after this minute; its directory exists."""
    out = asked or Path(__file__).parent / "results" / f"{bench}-{datetime.datetime.now(datetime.UTC):%Y-%m-%d-%H%M}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def facts(bench: str, where: Mapping[str, Any]) -> Line:
    """What every line says: of which bench, taken when, where (`machine.facts`), and how busy the machine was besides."""
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"bench": bench, "at": at, "load_1min": machine.load(), "machine": where}


def record(line: Line, out: Path) -> None:
    with out.open("a") as file:
        file.write(json.dumps(line) + "\n")


def recorded(lines: Iterable[Line], out: Path) -> list[Line]:
    """All lines; each is in the file as soon as it is measured, so that an end in the middle costs one run."""
    kept = []
    for line in lines:
        record(line, out)
        kept.append(line)
    return kept


def medians(lines: Iterable[Line], by: Sequence[str], keys: Sequence[str]) -> dict[tuple[Any, ...], dict[str, float]]:
    """Medians of `keys`, and how many `runs` they are of, by the values of `by`."""
    runs: defaultdict[tuple[Any, ...], list[Line]] = defaultdict(list)
    for line in lines:
        runs[tuple(line[name] for name in by)].append(line)
    return {key: {name: median(line[name] for line in found) for name in keys} | {"runs": len(found)} for key, found in runs.items()}


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])
