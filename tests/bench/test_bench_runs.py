"""Every bench runs to its end on something tiny, and its lines have the shape that the reports read. No speed is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.store import verdicts
from modelcache.units import GIB, MIB

REPOSITORY = Path(__file__).parents[2]
SECONDS = ("wall_s", "wall_to_exit_s", "user_s", "system_s", "cpu_s")


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def expect_machine(facts: dict[str, Any]) -> None:
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > GIB // 4
    assert set(facts) == {"processor", "cores", "memory_bytes", "kernel", "file_system", "python", "commit"}


def test_fetch(tmp_path: Path) -> None:
    out = tmp_path / "fetch.jsonl"
    printed = run("bench.fetch", "--quick", "--size", "8MiB", "--seed", "1", "--no-plot", "--cache", str(tmp_path), "--out", str(out))
    lines = lines_of(out)
    ours = {"ours-auto", "ours-buffered", "ours-direct"}
    ceilings = {"ceiling-buffered-2", "ceiling-buffered-4", "ceiling-direct-2", "ceiling-direct-4"}
    assert {(line["server"], line["contender"]) for line in lines} == {
        (server, name) for server in ("nginx", "seaweedfs") for name in ours | ceilings
    }
    for line in lines:
        assert (line["bench"], line["series"], line["round"], line["seed"]) == ("fetch", "shared", 1, 1)
        assert (line["size_bytes"], line["files"]) == (8 * MIB, 4)
        assert line["kind"] == ("ours" if line["contender"] in ours else "ceiling")
        assert all(line[key] > 0 for key in SECONDS)
        assert line["wall_s"] >= line["wall_to_exit_s"]
        assert line["rate_gib_per_s"] == pytest.approx(8 * MIB / GIB / line["wall_s"])
        assert line["cpu_s_per_gib"] == pytest.approx(line["cpu_s"] * GIB / (8 * MIB))
        assert MIB < line["peak_rss_bytes"] < 4 * GIB
        assert ("read_back_bytes" in line) == (line["contender"] in ours)
        expect_machine(line["machine"])
    assert all(name in printed for name in ours | ceilings)
    assert not (tmp_path / "bench-scratch").exists()


def test_hit(tmp_path: Path) -> None:
    out = tmp_path / "hit.jsonl"
    run("bench.hit", "--files", "1,3", "--seconds", "0.2", "--processes", "1", "--cache", str(tmp_path), "--out", str(out))
    lines = lines_of(out)
    assert [line["files"] for line in lines] == [1, 3]
    for line in lines:
        assert line["hits"] >= 1
        assert 0 < line["hit_p50_ms"] <= line["hit_p99_ms"]
        assert all(line[key] > 0 for key in ("first_p50_ms", "open_p50_ms", "command_p50_ms", "fetch_ms"))
        expect_machine(line["machine"])


def test_agent(tmp_path: Path) -> None:
    out = tmp_path / "agent.jsonl"
    size = ("--models", "2", "--size", "5MiB", "--blobs", "100")
    run("bench.agent", "--seconds", "0.5", "--times", "1", *size, "--cache", str(tmp_path), "--out", str(out))
    [line] = lines_of(out)
    assert line["hits_per_s"] > 0
    assert 0 < line["hit_p50_ms"] <= line["hit_p99_ms"] == line["hit_p99_ms_of_each"][0]
    assert line["agent_peak_rss_bytes"] > 1 << 20
    assert all(0 < line[f"{state}_first_s"] <= line[f"{state}_last_s"] for state in ("idle", "busy"))
    expect_machine(line["machine"])


def test_store(tmp_path: Path) -> None:
    out = tmp_path / "store.jsonl"
    run("bench.store", "--models", "1,2", "--times", "1", "--cache", str(tmp_path), "--out", str(out))
    lines = lines_of(out)
    questions = ["open", "ls", "df", "gc --dry-run", "gc --dry-run, over the cap", "show"]
    assert [(line["models"], line["blobs"], line["question"]) for line in lines] == [
        (models, models * 100, question) for models in (1, 2) for question in questions
    ]
    for line in lines:
        assert line["wall_s"] > 0
        assert line["peak_rss_bytes"] > MIB
        expect_machine(line["machine"])
    assert not (tmp_path / "bench-scratch").exists()


@pytest.mark.parametrize(("growth_bytes", "wall_s", "missed"), [(64, 1.9, []), (65, 1.9, ["memory"]), (0, 2.0, ["took", "took"])])
def test_what_store_says_was_missed(growth_bytes: int, wall_s: float, missed: list[str]) -> None:
    lines = [{"question": "ls", "blobs": count, "wall_s": wall_s, "peak_rss_bytes": MIB + growth_bytes * count} for count in (100, 10_000)]
    said = verdicts(lines)
    assert [line.startswith("MISSED") for line in said] == ([True] * len(missed) or [False])
    assert all(word in line for word, line in zip(missed or ["flat"], said, strict=True))


def test_load(tmp_path: Path) -> None:
    out = tmp_path / "load.jsonl"
    chosen = ["ours", "safetensors"]
    tiny = ["--contenders", ",".join(chosen), "--states", "cold,warm", "--size", "8MiB", "--rounds", "1"]
    printed = run("bench.load", *tiny, "--cache", str(tmp_path), "--out", str(out))
    lines = lines_of(out)
    assert {(line["state"], line["contender"]) for line in lines} == {(state, name) for state in ("cold", "warm") for name in chosen}
    for line in lines:
        assert line["size_bytes"] >= 8 * MIB
        assert all(line[key] > 0 for key in ("wall_s", "cpu_s", "rate_gib_per_s", "peak_rss_share"))
        if line["state"] == "warm":
            assert line["resident_before"] > 0.99
        expect_machine(line["machine"])
    assert all(sum(line["ways"].values()) >= 8 * MIB for line in lines if line["contender"] == "ours")
    assert "cold: CPU s/GiB into fresh memory" in printed


def test_gpu_rehearsed_on_the_host(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    tiny = ["--contenders", "ours,runai,ceiling-disk-reused,ceiling-bus-reused", "--states", "half", "--size", "8MiB", "--rounds", "1"]
    printed = run("bench.gpu", "--device", "cpu", *tiny, "--packages", str(tmp_path), "--cache", str(tmp_path), "--out", str(out))
    lines = lines_of(out)
    assert {line["contender"] for line in lines} == {"ours", "ceiling-disk-reused", "ceiling-bus-reused"}, "who isn't installed is left out"
    for line in lines:
        assert (line["bench"], line["state"], line["device"]["name"]) == ("gpu", "half", "cpu")
        assert all(line[key] > 0 for key in ("wall_s", "rate_gib_per_s", "peak_rss_share"))
        expect_machine(line["machine"])
    assert "half: ours" in printed


def test_stream(tmp_path: Path) -> None:
    out = tmp_path / "stream.jsonl"
    chosen = ["ours-stream", "ours-then-load"]
    tiny = ["--contenders", ",".join(chosen), "--size", "8MiB", "--rounds", "1"]
    printed = run("bench.stream", *tiny, "--cache", str(tmp_path), "--out", str(out))
    lines = lines_of(out)
    assert {line["contender"] for line in lines} == set(chosen)
    for line in lines:
        assert line["size_bytes"] >= 8 * MIB
        assert all(line[key] > 0 for key in ("total_s", "cpu_s", "rate_gib_per_s", "peak_rss_bytes"))
        assert 0 < line["first_tensor_s"] <= line["total_s"]
        assert sum(line["ways"].values()) >= 8 * MIB
        expect_machine(line["machine"])
    assert "seaweedfs: first tensor after" in printed
    assert "× the time of ours-then-load" in printed
    assert not (tmp_path / "bench-scratch-stream").exists()


def test_medians_and_verdicts() -> None:
    def line(contender: str, kind: str, rate: float, cpu: float) -> dict[str, Any]:
        return {
            "server": "nginx",
            "series": "shared",
            "contender": contender,
            "kind": kind,
            "checks": "nothing",
            "rate_gib_per_s": rate,
            "rate_to_exit_gib_per_s": rate,
            "cpu_s_per_gib": cpu,
            "cpu_to_exit_s_per_gib": cpu,
            "server_cpu_s_per_gib": 0.1,
            "peak_rss_bytes": 100 * MIB,
        }

    lines = [line("ours-auto", "ours", rate, 1.0) for rate in (0.1, 0.6, 9.0)]
    lines += [line("s5cmd", "peer", 0.3, 2.0), line("ceiling-direct-2", "ceiling", 1.0, 0.5)]
    [table] = report.tables(lines)
    assert [(row.contender, row.rate_gib_per_s, row.runs) for row in table[2]] == [
        ("ceiling-direct-2", 1.0, 1),
        ("ours-auto", 0.6, 3),
        ("s5cmd", 0.3, 1),
    ]
    assert [text.split()[0] for text in report.verdicts(table)] == ["reached", "MISSED", "reached", "reached"]
    assert "2.00 × the speed of the fastest that doesn't (s5cmd)" in report.verdicts(table)[0]
    assert "| ours-auto        | 0.600" in report.markdown(table)
