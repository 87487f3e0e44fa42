"""Byte counts, rates and durations, for people: printing and parsing."""

from __future__ import annotations

import re

from modelcache.errors import BadConfig

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
PIB = 1 << 50

_FACTORS = {
    "": 1, "b": 1,
    "k": 1000, "kb": 1000, "ki": KIB, "kib": KIB,
    "m": 1000**2, "mb": 1000**2, "mi": MIB, "mib": MIB,
    "g": 1000**3, "gb": 1000**3, "gi": GIB, "gib": GIB,
    "t": 1000**4, "tb": 1000**4, "ti": TIB, "tib": TIB,
    "p": 1000**5, "pb": 1000**5, "pi": PIB, "pib": PIB,
}  # fmt: skip
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SPAN = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(ms|s|min|m|h|d)")
_SPANS = re.compile(rf"(?:{_SPAN.pattern}\s*)+")
_SIZE = re.compile(r"([0-9]{1,30})(?:\.([0-9]{1,30}))?\s*([a-zA-Z]*)")


def format_bytes(count: int | float) -> str:
    """`1536` → `1.5 KiB`: binary units, one decimal beyond bytes."""
    value = float(count)
    if abs(value) < 1024:
        return f"{int(value)} B"
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if abs(round(value, 1)) < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def format_rate(bytes_per_second: float) -> str:
    """`1572864.0` → `1.5 MiB/s`."""
    return f"{format_bytes(bytes_per_second)}/s"


def format_duration(seconds: float) -> str:
    """`0.0123` → `12 ms`, `75` → `1m15s`, `4000` → `1h06m`."""
    if round(seconds, 3) < 1:
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"


def parse_bytes(text: str) -> int:
    """`10GiB`, `10Gi` (Kubernetes' spelling), `1.5 MB`, `4096` → bytes, rounded down; letter case doesn't count.

    Raises:
        BadConfig: not a size; `got` is the text.
    """
    match = _SIZE.fullmatch(text.strip())
    factor = _FACTORS.get(match.group(3).lower()) if match else None
    if match is None or factor is None:
        raise BadConfig(f"`{text}` is not a size", got=text, hint="write a number and a unit, such as `200GiB`")
    whole, fraction = match.group(1), match.group(2) or "0"
    scale: int = 10 ** len(fraction)
    return int(whole) * factor + int(fraction) * factor // scale


def parse_duration(text: str) -> float:
    """`10m`, `1h30m`, `500ms`, `2.5 s`, `1d`, and a bare number of seconds → seconds.

    Raises:
        BadConfig: not a duration; `got` is the text.
    """
    text = text.strip()
    if _SPANS.fullmatch(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in _SPAN.findall(text))
    try:
        return float(text)
    except ValueError:
        raise BadConfig(
            f"`{text}` is not a duration", got=text, hint="write a number of seconds, or a number and a unit, such as `10m`"
        ) from None
