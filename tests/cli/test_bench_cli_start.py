"""The bench of the command line's start runs to its end; no speed is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli_start import main


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--times", "1", "--out", str(tmp_path / "out.jsonl")])
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    assert {"modelcache --help", "typer and rich alone, --help"} <= {line["what"] for line in lines}
    assert all(line["runs"] == 1 and line["p50_ms"] > 0 for line in lines)
    assert "`modelcache --help` takes" in capsys.readouterr().out
