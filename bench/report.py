"""Lines of results → medians, tables, and whether what was to be reached is reached. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from modelcache.units import MIB

Line = dict[str, Any]

CEILING_SHARE = 0.8
RSS_LIMIT_MIB = 256
HEADINGS = (
    "contender", "GiB/s", "to exit", "× ours", "of ceiling", "CPU s/GiB", "to exit", "server CPU s/GiB", "peak MiB", "runs", "checks",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one contender in one series at one server."""

    contender: str
    kind: str
    checks: str
    runs: int
    rate_gib_per_s: float
    rate_to_exit_gib_per_s: float
    cpu_s_per_gib: float
    cpu_to_exit_s_per_gib: float
    server_cpu_s_per_gib: float
    peak_rss_mib: float


Table = tuple[str, str, list[Row]]
"""Server, series, rows."""


def tables(lines: Iterable[Line]) -> list[Table]:
    """Medians, by server and series, in the order in which they first appear; rows from fast to slow."""
    runs: defaultdict[tuple[str, str], defaultdict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        runs[line["server"], line["series"]][line["contender"]].append(line)
    found = []
    for (server, series), by_contender in runs.items():
        rows = [_row(each) for each in by_contender.values()]
        found.append((server, series, sorted(rows, key=lambda row: -row.rate_gib_per_s)))
    return found


def _row(lines: Sequence[Line]) -> Row:
    def middle(key: str) -> float:
        return float(median(line[key] for line in lines))

    first = lines[0]
    return Row(
        contender=first["contender"],
        kind=first["kind"],
        checks=first["checks"],
        runs=len(lines),
        rate_gib_per_s=middle("rate_gib_per_s"),
        rate_to_exit_gib_per_s=middle("rate_to_exit_gib_per_s"),
        cpu_s_per_gib=middle("cpu_s_per_gib"),
        cpu_to_exit_s_per_gib=middle("cpu_to_exit_s_per_gib"),
        server_cpu_s_per_gib=middle("server_cpu_s_per_gib"),
        peak_rss_mib=middle("peak_rss_bytes") / MIB,
    )


def ours(rows: Sequence[Row]) -> Row | None:
    """The row that users get when they set nothing."""
    return next((row for row in rows if row.contender == "ours-auto"), None) or _best(rows, "ours")


def _best(rows: Sequence[Row], kind: str) -> Row | None:
    return max((row for row in rows if row.kind == kind), key=lambda row: row.rate_gib_per_s, default=None)


def markdown(table: Table) -> str:
    """One table, ready for a README."""
    server, series, rows = table
    mine, ceiling = ours(rows), _best(rows, "ceiling")
    body = [
        (
            row.contender,
            f"{row.rate_gib_per_s:.3f}",
            f"{row.rate_to_exit_gib_per_s:.3f}",
            f"{row.rate_gib_per_s / mine.rate_gib_per_s:.2f}" if mine else "",
            f"{row.rate_gib_per_s / ceiling.rate_gib_per_s:.2f}" if ceiling else "",
            f"{row.cpu_s_per_gib:.2f}",
            f"{row.cpu_to_exit_s_per_gib:.2f}",
            f"{row.server_cpu_s_per_gib:.2f}",
            f"{row.peak_rss_mib:.0f}",
            str(row.runs),
            row.checks,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (HEADINGS, *body)) for column in range(len(HEADINGS))]
    rule = tuple("-" * width for width in widths)
    text = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (HEADINGS, rule, *body)]
    return f"{server}, {series}\n\n" + "\n".join(f"| {line} |" for line in text) + "\n"


def verdicts(table: Table) -> list[str]:
    """What was to be reached in one table, and what was measured; nothing about contenders that did not run."""
    server, series, rows = table
    mine, ceiling, peer = ours(rows), _best(rows, "ceiling"), _best(rows, "peer")
    if mine is None:
        return []
    found = []
    where = f"{server}, {series}: {mine.contender}"
    if peer is not None:
        ratio = mine.rate_gib_per_s / peer.rate_gib_per_s
        found.append(_verdict(ratio > 1, f"{where} verifies at {ratio:.2f} × the speed of the fastest that doesn't ({peer.contender})"))
    if ceiling is not None:
        share = mine.rate_gib_per_s / ceiling.rate_gib_per_s
        text = f"{where} has {share:.2f} of the ceiling, {ceiling.contender}"
        cheap = server in ("nginx", "hub")  # elsewhere the server is the ceiling
        found.append(_verdict(share >= CEILING_SHARE, f"{text} (to reach: {CEILING_SHARE})") if cheap else f"         {text}")
    s5cmd = next((row for row in rows if row.contender == "s5cmd"), None)
    if s5cmd is not None:
        ratio = mine.cpu_s_per_gib / s5cmd.cpu_s_per_gib
        found.append(_verdict(ratio <= 1, f"{where} takes {ratio:.2f} × the CPU of s5cmd"))
    found.append(
        _verdict(mine.peak_rss_mib < RSS_LIMIT_MIB, f"{where} peaks at {mine.peak_rss_mib:.0f} MiB (to stay under: {RSS_LIMIT_MIB})")
    )
    return found


def _verdict(reached: bool, text: str) -> str:
    return f"{'reached' if reached else 'MISSED '}  {text}"
