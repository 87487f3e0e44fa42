"""JSON as one reading: what parsers disagree about (a key twice, NaN, `-0` as a whole number) is refused."""

from __future__ import annotations

import json
from typing import Any


def loads(data: bytes) -> Any:
    """The value of UTF-8 JSON.

    Raises:
        ValueError: it is none, or one that two parsers may read as two values; the message says what and where.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_int=_whole, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has the key {name[:100]!a} twice")
        found[name] = value
    return found


def _whole(text: str) -> int:
    if text == "-0":  # others read it as a fraction
        raise ValueError("-0 is no whole number")
    return int(text)


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
