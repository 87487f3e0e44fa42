"""The README's tour of the command line, run: what it prints has the shape of what the README shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from modelcache.testing.models import write_stand_in
from modelcache.units import MIB
from tests.docs.documents import ROOT, between, fenced

PASSING = re.compile(r": (resolving|reserving|fetching|publishing|reading)\b")
"""Lines of progress come and go with the speed of the machine; the README shows none."""
SHAPES = (
    (re.compile(r"(?:~|/[\w.-]+)(?:/[\w.@-]+)+"), "PATH"),
    (re.compile(r"\b[0-9a-f]{8,64}\b"), "HEX"),
    (re.compile(r"\b\d[\d.,]*(?: ?(?:B|[KMGT]iB|ms|s|m|h|d)\b)?(?:/s)?%?"), "N"),
    (re.compile(r"[ \t]+"), " "),
)


@dataclass(frozen=True)
class Shown:
    """A command of the README and what it shows of its output."""

    command: str
    output: str


def tour() -> list[Shown]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = []
    for block in fenced(between(readme, "tour"), "console"):
        for part in block.split("$ ")[1:]:
            command, _, output = part.partition("\n")
            found.append(Shown(command, output.strip()))
    return found


def shape(text: str) -> list[str]:
    """The text without what differs between runs: numbers, digests, places."""
    for pattern, word in SHAPES:
        text = pattern.sub(word, text)
    return [line.strip() for line in text.strip().splitlines()]


def test_each_command_prints_what_the_readme_shows(tmp_path: Path) -> None:
    here = tmp_path / "here"
    write_stand_in(here / "llama", size_bytes=24 * MIB, shards=2, seed=1)
    shutil.copytree(here / "llama", here / "llama-copy")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MODELCACHE_") or name.endswith("_WATERMARK")}
    environ |= {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    environ.pop("XDG_CACHE_HOME", None)
    shown = tour()

    assert len(shown) >= 8
    for each in shown:
        ran = subprocess.run(
            ["bash", "-c", each.command],
            cwd=here,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        lasting = "\n".join(line for line in ran.stdout.splitlines() if not PASSING.search(line))
        assert shape(lasting) == shape(each.output), f"$ {each.command}\n{ran.stdout}"


def test_shapes_tell_outputs_apart() -> None:
    same = (
        "file:///a/b: fetched 24.0 MiB, reused 0 B, 4 files in 423 ms (56.7 MiB/s)",
        "file:///x/y-z/b: fetched 1.0 GiB, reused 3 B, 5 files in 2 s (9 B/s)",
    )

    assert shape(same[0]) == shape(same[1])
    assert shape(same[0]) != shape("file:///a/b: hit: nothing fetched (24.0 MiB, 4 files, 20 ms)")
