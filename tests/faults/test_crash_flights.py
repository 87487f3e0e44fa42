"""Processes that want the same bytes at the same time, killed at random: each byte comes once, none is wrong, no room is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.faults.chance import quick_directory, seed_of, soak_rounds

ROUNDS = 10
DEADLINE_S = 3600

Play = Callable[[int, str, int], None]


@pytest.fixture
def play(pytestconfig: pytest.Config) -> Play:
    def rounds(processes: int, known_by: str, count: int) -> None:
        seed = seed_of(pytestconfig)
        with quick_directory() as directory:
            command = [sys.executable, "-m", "modelcache.testing.crash_flights", str(directory / "flights")]
            options = ["--processes", str(processes), "--known-by", known_by, "--rounds", str(count), "--seed", str(seed)]
            ran = subprocess.run([*command, *options], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert ran.returncode == 0, ran.stderr
        found = json.loads(ran.stdout)
        print(found["kills"], "processes killed")
        assert found["problems"] == [], ran.stderr
        assert found["kills"] > count / 4, "hardly anything was killed: the instants are wrong"

    return rounds


@pytest.mark.parametrize(("processes", "known_by"), [(2, "sha256"), (8, "sha256"), (8, "version")])
def test_each_byte_comes_once(play: Play, processes: int, known_by: str) -> None:
    play(processes, known_by, ROUNDS)


@pytest.mark.soak
@pytest.mark.timeout(DEADLINE_S)
@pytest.mark.parametrize("known_by", ["sha256", "version"])
@pytest.mark.parametrize("processes", [2, 8])
def test_each_byte_comes_once_in_hundreds_of_rounds(play: Play, processes: int, known_by: str) -> None:
    play(processes, known_by, soak_rounds(300))
