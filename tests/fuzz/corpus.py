"""Inputs that reach every part found so far: a file of base64 lines per target, kept with the tests."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

PLACE = Path(__file__).parent / "corpus"


def read(target: str) -> list[bytes]:
    """The inputs of a target."""
    return [base64.b64decode(line, validate=True) for line in _file(target).read_text(encoding="ascii").splitlines()]


def write(target: str, inputs: Iterable[bytes]) -> None:
    """Replace them; equal inputs make an equal file."""
    lines = sorted({base64.b64encode(each).decode("ascii") for each in inputs}, key=lambda line: (len(line), line))
    _file(target).write_text("".join(f"{line}\n" for line in lines), encoding="ascii")


def unpack(inputs: Iterable[bytes], directory: Path) -> None:
    """One file for each, as libFuzzer reads and names them."""
    directory.mkdir(parents=True, exist_ok=True)
    for each in inputs:
        (directory / hashlib.sha1(each, usedforsecurity=False).hexdigest()).write_bytes(each)


def _file(target: str) -> Path:
    return PLACE / f"{target}.txt"
