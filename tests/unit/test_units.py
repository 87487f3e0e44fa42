"""Sizes, rates and durations as people read and write them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import BadConfig
from modelcache.units import GIB, KIB, MIB, PIB, TIB, format_bytes, format_duration, format_rate, parse_bytes, parse_duration

FACTORS = {
    "": 1,
    "B": 1,
    "k": 10**3,
    "KB": 10**3,
    "Ki": KIB,
    "KiB": KIB,
    "M": 10**6,
    "mb": 10**6,
    "Mi": MIB,
    "MiB": MIB,
    "G": 10**9,
    "Gi": GIB,
}
FACTORS |= {"GiB": GIB, "gib": GIB, "T": 10**12, "tb": 10**12, "Ti": TIB, "TiB": TIB, "P": 10**15, "Pi": PIB, "pib": PIB}


@given(st.integers(0, 1 << 62), st.sampled_from(sorted(FACTORS)), st.sampled_from(["", " "]))
def test_whole_numbers_are_read_exactly(number: int, unit: str, space: str) -> None:
    assert parse_bytes(f"{number}{space}{unit}") == number * FACTORS[unit]


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from(sorted(FACTORS)))
def test_decimals_are_rounded_down(whole: int, thousandths: int, unit: str) -> None:
    exact = Fraction(whole * 1000 + thousandths, 1000) * FACTORS[unit]
    assert parse_bytes(f" {whole}.{thousandths:03d}{unit} ") == int(exact)


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1.", ".5G", "1e3", "1,5G", "1 Gibi", "١G", "1 G B", "0x10", "nan", "1" * 31, "1EiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(BadConfig) as caught:
        parse_bytes(text)
    assert caught.value.got == text
    assert caught.value.hint is not None


@given(st.integers(0, 1 << 60))
def test_a_printed_size_is_near_the_true_one(count: int) -> None:
    printed = format_bytes(count)
    unit = printed.split()[1]
    assert abs(parse_bytes(printed) - count) <= (FACTORS[unit] / 20 + 1 if unit != "B" else 0)
    assert float(printed.split()[0]) < 1024 or unit == "TiB"


@pytest.mark.parametrize(
    ("count", "printed"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (MIB - 1, "1.0 MiB"),
        (MIB, "1.0 MiB"),
        (3 * GIB, "3.0 GiB"),
        (2048 * TIB, "2048.0 TiB"),
    ],
)
def test_printed_sizes(count: int, printed: str) -> None:
    assert format_bytes(count) == printed
    assert format_rate(count) == f"{printed}/s"


@pytest.mark.parametrize(
    ("seconds", "printed"),
    [
        (0, "0 ms"),
        (0.0123, "12 ms"),
        (0.9996, "1.0 s"),
        (1, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1m00s"),
        (75, "1m15s"),
        (3599.4, "59m59s"),
        (3599.9, "1h00m"),
        (4000, "1h06m"),
    ],
)
def test_printed_durations(seconds: float, printed: str) -> None:
    assert format_duration(seconds) == printed


@given(st.integers(0, 10**9), st.sampled_from(["s", " s", ""]))
def test_whole_seconds_are_read_exactly(seconds: int, unit: str) -> None:
    assert parse_duration(f"{seconds}{unit}") == seconds


@given(st.floats(1.0, 10**7))
def test_a_printed_duration_is_near_the_true_one(seconds: float) -> None:
    assert abs(parse_duration(format_duration(seconds)) - seconds) <= (0.06 if seconds < 60 else 60.5)


def test_durations_of_several_units() -> None:
    assert parse_duration("1h30m") == 5400
    assert parse_duration(" 1d 2h 3min 4s 5ms ") == 86_400 + 7200 + 180 + 4.005


@pytest.mark.parametrize("text", ["", "m", "-1m", "10 minutes", "1.m", "1m30", "ten"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(BadConfig) as caught:
        parse_duration(text)
    assert caught.value.got == text
    assert caught.value.hint is not None
