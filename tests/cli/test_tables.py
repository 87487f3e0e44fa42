"""Tables, ages, and text that is safe on a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from modelcache.cli.tables import Column, Table, cells_of, counted, format_age, one_line, printable, table_lines

WORD = st.text(st.characters(min_codepoint=33, max_codepoint=0x30FF, categories=["L", "N", "P", "Mn"]), min_size=1, max_size=12).map(
    lambda text: unicodedata.normalize("NFC", text)
)
COLUMNS = (Column("a", right=True), Column("bb"), Column("uri"))
ROWS = st.lists(st.tuples(WORD, WORD, st.lists(WORD, min_size=1, max_size=3).map("\n".join)), min_size=1, max_size=6).map(tuple)


@given(ROWS)
def test_columns_are_aligned_and_nothing_is_cut(rows: tuple[tuple[str, str, str], ...]) -> None:
    header, *lines = table_lines(Table(COLUMNS, rows))
    widths = [max(cells_of(text) for text in [title, *(row[at] for row in rows)]) for at, title in enumerate(("A", "BB"))]
    expected = []
    for first, second, third in rows:
        for number, uri in enumerate(third.split("\n")):
            left, middle = (first, second) if number == 0 else ("", "")
            expected.append(" " * (widths[0] - cells_of(left)) + left + "  " + middle + " " * (widths[1] - cells_of(middle)) + "  " + uri)

    assert header.split() == ["A", "BB", "URI"]
    assert lines == expected


@given(ROWS, st.integers(10, 60))
def test_on_a_narrow_terminal_columns_of_text_stand_below_as_far_as_needed(rows: tuple[tuple[str, str, str], ...], width: int) -> None:
    table = Table(COLUMNS, rows)
    wide, narrow = table_lines(table), table_lines(table, width)
    one, two = (table_lines(Table(COLUMNS[:kept], tuple(row[:kept] for row in rows))) for kept in (2, 1))
    uris = [["  " + uri for uri in row[2].split("\n")] for row in rows]
    below_one = [one[0], *(line for own, more in zip(one[1:], uris, strict=True) for line in (own, *more))]
    below_two = [two[0]]
    for own, row, more in zip(two[1:], rows, uris, strict=True):
        below_two += [own, f"  bb: {row[1]}", *(f"  {'     ' if number else 'uri: '}{uri.strip()}" for number, uri in enumerate(more))]

    assert narrow == next(lines for lines in (wide, below_one, below_two) if lines is below_two or max(map(cells_of, lines)) <= width)


def test_cells_of_wide_and_combining_characters() -> None:
    assert (cells_of("abc"), cells_of("模型"), cells_of("e\u0301")) == (3, 4, 1)


@given(st.text())
def test_what_is_printable_steers_nothing(text: str) -> None:
    shown = printable(text)

    assert len(shown) == len(text)
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert printable(shown) == shown
    assert one_line(text) == shown.replace("\n", "\N{REPLACEMENT CHARACTER}")


def test_ages_and_counts() -> None:
    assert [format_age(1000.0 - age, now_s=1000.0) for age in (-5, 0, 59, 60, 3_600, 86_399, 86_400, 10 * 86_400)] == [
        "0s", "0s", "59s", "1m", "1h", "23h", "1d", "10d",
    ]  # fmt: skip
    assert (counted(1, "file"), counted(0, "file"), counted(1234, "file")) == ("1 file", "0 files", "1,234 files")
