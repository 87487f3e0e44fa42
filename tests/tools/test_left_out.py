"""A run says which tests it leaves out; one that expects them fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFTEST = """
import pytest
from tests import left_out

left_out.kernel_has = lambda kind: kind != "btrfs"
left_out.has_gpu = lambda: False

def pytest_configure(config: pytest.Config) -> None:
    for mark in ("root", "gpu", "soak", "file_system"):
        config.addinivalue_line("markers", f"{mark}: of these tests")
    config.pluginmanager.register(left_out)
"""
TESTS = """
import pytest

@pytest.mark.file_system("xfs")
def test_a(): pass

@pytest.mark.file_system("btrfs")
def test_b(): pass

@pytest.mark.soak
def test_c(): pass

@pytest.mark.gpu
def test_d(): pass
"""


@pytest.mark.parametrize(("expect", "processes"), [("", "0"), ("xfs", "2"), ("xfs, btrfs", "2"), ("gpu", "0"), ("minix", "0")])
def test_what_the_kernel_lacks_is_named_or_fails_the_run(tmp_path: Path, expect: str, processes: str) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_them.py").write_text(TESTS)
    options = ["-p", "no:cacheprovider", "-n", processes, "--dist", "loadfile", f"--rootdir={tmp_path}", "-m", "not soak", "-q"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "MODELCACHE_TESTS_EXPECT": expect}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    if expect in ("", "xfs"):
        assert done.returncode == 0, done.stdout + done.stderr
        assert (
            "1  this kernel has no btrfs (MODELCACHE_TESTS_EXPECT=btrfs makes that a failure)\n       test_them.py::test_b" in done.stdout
        )
        assert "1  not selected, marked soak\n       test_them.py::test_c" in done.stdout
        assert "1  this machine has no gpu (MODELCACHE_TESTS_EXPECT=gpu makes that a failure)\n       test_them.py::test_d" in done.stdout
        assert "1 passed" in done.stdout
    else:
        assert done.returncode == pytest.ExitCode.USAGE_ERROR
        said = {"xfs, btrfs": "expects btrfs, and this kernel", "gpu": "expects gpu, and this machine", "minix": "of the tests: minix;"}
        assert said[expect] in done.stderr
