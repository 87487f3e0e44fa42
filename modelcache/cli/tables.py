"""Tables as values, and how they read where there is no terminal. `screen` draws them where there is one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        right: numbers are set to the right.
        folds: gives way first where the terminal is narrow; its text is continued on the next line.
    """

    title: str
    right: bool = False
    folds: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; a cell may hold several lines. `title` stands above it, or not at all."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""


def plain_lines(table: Table) -> list[str]:
    """The table in aligned columns, two spaces apart, nothing cut off, no space at the end of a line."""
    lines = [tuple(column.title.upper() for column in table.columns)]
    for row in table.rows:
        cells = [cell.split("\n") for cell in row]
        height = max(len(cell) for cell in cells)
        lines += [tuple(cell[at] if at < len(cell) else "" for cell in cells) for at in range(height)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(table.columns))]
    shown = [_aligned(line, table.columns, widths) for line in lines if any(line)]
    return [table.title, *shown] if table.title else shown


def _aligned(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    padded = (cell.rjust(width) if column.right else cell.ljust(width) for cell, column, width in zip(cells, columns, widths, strict=True))
    return "  ".join(padded).rstrip()


def format_age(at_s: float, *, now_s: float | None = None) -> str:
    """How long ago a Unix time was, in one unit: `12s`, `5m`, `3h`, `9d`; `0s` for a time still to come."""
    seconds = max(0, int((time.time() if now_s is None else now_s) - at_s))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def format_time(at_s: float) -> str:
    """A Unix time as local date and time with its zone, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(at_s))


def counted(count: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def printable(text: str) -> str:
    """`text` with every character that could steer a terminal replaced; line breaks stay."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
