"""Tables as values, and how they read in a pipe and on a terminal."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

INDENT = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """One column; numbers are set to the right."""

    title: str
    right: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; a cell may hold several lines. The last column is the one that may be long."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


def table_lines(table: Table, width: int | None = None) -> list[str]:
    """The table in aligned columns, two spaces apart, header first, nothing cut off, no space at the end of a line.

    Args:
        width: of the terminal, in cells; None: no terminal. Where a row doesn't fit, the last column stands below it, indented, and so
            do further columns of text before it, all with their titles then, as far as that is needed. The terminal breaks what is
            longer still, so that a URI can be copied whole.
    """
    lines = _aligned([_header(table.columns), *_flat(table.rows)], table.columns)
    beside = len(table.columns)
    while width is not None and max(map(cells_of, lines)) > width and _may_move(table.columns, beside - 1):
        beside -= 1
        lines = [line for row in _stacked(table, beside) for line in row]
    return lines


def _may_move(columns: Sequence[Column], at: int) -> bool:
    """Whether a column can stand below its row: the last one, and text; numbers are read down their column."""
    return at > 0 and (at == len(columns) - 1 or not columns[at].right)


def _stacked(table: Table, beside: int) -> Iterator[list[str]]:
    """Header and rows with only so many columns beside each other, and the others below."""
    columns, below = table.columns[:beside], table.columns[beside:]
    rows = [_flat([row[:beside]]) for row in table.rows]
    widths = _widths([_header(columns), *(line for row in rows for line in row)], columns)
    yield [_joined(_header(columns), columns, widths)]
    for row, cells in zip(rows, (row[beside:] for row in table.rows), strict=True):
        titles = ["" if len(below) == 1 else f"{column.title}: " for column in below]
        yield [_joined(line, columns, widths) for line in row] + [
            INDENT + (" " * len(title) if number else title) + text
            for title, cell in zip(titles, cells, strict=True)
            for number, text in enumerate(filter(None, cell.split("\n")))
        ]


def _header(columns: Sequence[Column]) -> tuple[str, ...]:
    return tuple(column.title.upper() for column in columns)


def _flat(rows: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """Rows whose cells hold several lines as several rows, empty where a cell has fewer."""
    flat = []
    for row in rows:
        split = [cell.split("\n") for cell in row]
        height = max(map(len, split))
        flat += [tuple(lines[at] if at < len(lines) else "" for lines in split) for at in range(height)]
    return flat


def _aligned(lines: Sequence[Sequence[str]], columns: Sequence[Column]) -> list[str]:
    widths = _widths(lines, columns)
    return [_joined(line, columns, widths) for line in lines]


def _widths(lines: Sequence[Sequence[str]], columns: Sequence[Column]) -> list[int]:
    return [max(cells_of(line[at]) for line in lines) for at in range(len(columns))]


def _joined(line: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    padded = []
    for text, column, width in zip(line, columns, widths, strict=True):
        space = " " * (width - cells_of(text))
        padded.append(space + text if column.right else text + space)
    return INDENT.join(padded).rstrip()


def cells_of(text: str) -> int:
    """How many cells of a terminal a text takes: two per wide character, none per combining one."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


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
    return "".join(char if char.isprintable() or char == "\n" else REPLACEMENT for char in text)


def one_line(text: str) -> str:
    """`printable` of a name that somebody else gave: without line breaks, too, which would be a cell's of several lines."""
    return printable(text).replace("\n", REPLACEMENT)
