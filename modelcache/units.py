"""Byte counts, rates and durations, for people: printing and parsing."""

from __future__ import annotations

import re

from modelcache.errors import BadConfig

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_FACTORS = {
    "": 1, "b": 1,
    "k": 1000, "kb": 1000, "ki": KIB, "kib": KIB,
    "m": 1000**2, "mb": 1000**2, "mi": MIB, "mib": MIB,
    "g": 1000**3, "gb": 1000**3, "gi": GIB, "gib": GIB,
    "t": 1000**4, "tb": 1000**4, "ti": TIB, "tib": TIB,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")


def format_bytes(count: int | float) -> str:
    """`1536` → `1.5 KiB`: three significant digits at least, binary units."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_rate(bytes_per_second: float) -> str:
    """`1572864.0` → `1.5 MiB/s`."""
    return f"{format_bytes(bytes_per_second)}/s"


def format_duration(seconds: float) -> str:
    """`0.0123` → `12 ms`, `75` → `1m15s`, `4000` → `1h06m`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"


def parse_bytes(text: str) -> int:
    """`10GiB`, `10Gi` (Kubernetes' spelling), `1.5 MB`, `4096` → bytes.

    Raises:
        BadConfig: not a size; `got` is the text.
    """
    match = _SIZE.fullmatch(text.strip())
    factor = _FACTORS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise BadConfig(f"`{text}` is not a size", got=text, hint="write a number and a unit, such as `200GiB`")
    return int(float(match.group(1)) * factor)
