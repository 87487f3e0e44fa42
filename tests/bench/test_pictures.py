"""Which results get a picture. What is on it, a person looks at."""

from __future__ import annotations

import os
from pathlib import Path

from bench.pictures import undrawn


def test_results_without_a_picture_or_newer_than_it(tmp_path: Path) -> None:
    for name in ("agent-1.jsonl", "fetch-1.jsonl", "fetch-2.jsonl", "fetch-2.svg", "hit-1.jsonl", "hit-1.svg"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "fetch-2.svg", ns=(0, 0))
    os.utime(tmp_path / "hit-1.jsonl", ns=(0, 0))
    assert [lines.name for lines in undrawn(tmp_path)] == ["fetch-1.jsonl", "fetch-2.jsonl"]
