"""The benches of ranks run to their end on something tiny, in the shape that their reports read."""

from __future__ import annotations

from pathlib import Path

from modelcache.units import MIB
from tests.bench.test_bench_runs import expect_machine, lines_of, run


def test_ranks(tmp_path: Path) -> None:
    out = tmp_path / "ranks.jsonl"
    tiny = ["--contenders", "together", "--worlds", "2", "--size", "16MiB", "--rounds", "1"]
    printed = run("bench.ranks", *tiny, "--cache", str(tmp_path), "--out", str(out))
    lines = lines_of(out)
    assert [line["contender"] for line in lines] == ["together"]
    for line in lines:
        assert (line["bench"], line["world"], len(line["ways"])) == ("ranks", 2, 2)
        assert all(line[key] > 0 for key in ("wall_s", "cpu_s", "peak_share"))
        assert line["read_share"] >= 0  # nothing where the directory is in memory
        expect_machine(line["machine"])
    shared = [sum(ways.get("shared", 0) for ways in line["ways"]) for line in lines]
    assert all(count > 8 * MIB for count in shared)
    assert "2 ranks: " in printed


def test_arriving(tmp_path: Path) -> None:
    out = tmp_path / "arriving.jsonl"
    tiny = ["--contenders", "group", "--worlds", "2", "--size", "16MiB", "--rounds", "1"]
    printed = run("bench.arriving", *tiny, "--cache", str(tmp_path), "--out", str(out))
    lines = lines_of(out)
    assert [line["contender"] for line in lines] == ["group"]
    for line in lines:
        assert (line["bench"], line["world"], len(line["ways"]), len(line["phases"])) == ("arriving", 2, 2, 2)
        assert all(line[key] > 0 for key in ("total_s", "first_s", "cpu_s_per_gib", "peak_share"))
        expect_machine(line["machine"])
    assert [set(ways) for ways in sorted(lines[0]["ways"], key=str)] == [{"arrived"}, {"shared"}]
    assert "2 ranks: " in printed
