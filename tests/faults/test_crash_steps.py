"""SIGKILL at every change that the store makes to the disk: what is left is sound, and whoever comes next finishes it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import modelcache.store
from modelcache.testing import crash
from modelcache.testing.crash_scenarios import scenarios
from tests.faults.chance import quick_directory, seed_of

ROUNDS = 36
"""A sample of each script: the whole is 2,000 rounds of 0.1 s, and `make soak`'s."""
DEADLINE_S = 3600
CHANGING = {"link", "symlink", "rename", "replace", "unlink", "remove", "mkdir", "makedirs", "rmdir", "removedirs", "chmod", "fchmod"}
CHANGING |= {"lchmod", "chown", "utime", "truncate", "ftruncate", "write", "pwrite", "writev", "pwritev", "posix_fallocate", "mknod"}
CHANGING |= {"fsync", "fdatasync", "sync", "sendfile", "copy_file_range", "splice", "setxattr", "removexattr"}


def run_worker(directory: Path, scenario: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "modelcache.testing.crash_worker", str(directory), scenario, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr[-10_000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["problems"] == [], "\n".join([*found["problems"][:20], done.stderr[-10_000:]])
    return found


@pytest.mark.parametrize("scenario", scenarios())
def test_a_crash_at_a_sample_of_all_steps(scenario: str, pytestconfig: pytest.Config) -> None:
    seed = seed_of(pytestconfig)
    with quick_directory() as directory:
        found = run_worker(directory / "bench", scenario, "--rounds", str(ROUNDS), "--seed", str(seed))
    assert found["rounds"] == ROUNDS


@pytest.mark.soak
@pytest.mark.timeout(DEADLINE_S)
@pytest.mark.parametrize("chunks", ["small", "real"])
@pytest.mark.parametrize("scenario", scenarios())
def test_a_crash_at_every_step(scenario: str, chunks: str) -> None:
    with quick_directory() as directory:
        found = run_worker(directory / "bench", scenario, "--chunks", chunks)
    assert found["rounds"] >= 2 * found["changes"] > 0


# -- that every step is one of these ------------------------------------------------------------------------------------


def test_every_change_to_the_disk_can_be_stopped_at() -> None:
    assert crash.unknown_changes() == set()


def test_only_durable_changes_the_disk() -> None:
    modules = sorted(Path(next(iter(modelcache.store.__path__))).glob("*.py"))
    changing = {module.stem: changes for module in modules if (changes := _changes(ast.parse(module.read_text("utf-8"))))}
    assert changing.keys() == {"durable"}


def _changes(tree: ast.Module) -> set[str]:
    """Functions of the standard library that change a disk, and flags that make files, as far as they are named in a module."""
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    of_os = {node.attr for node in named if isinstance(node.value, ast.Name) and node.value.id in ("os", "shutil")}
    return (of_os & {*CHANGING, "O_CREAT", "O_TRUNC", "O_APPEND"}) | ({node.attr for node in named} & {"write_bytes", "write_text"})
