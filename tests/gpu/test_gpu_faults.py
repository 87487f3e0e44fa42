"""What loads do when a GPU fails, or is asked from a fork: simulated ones, which can be told to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.gpu.faulty import CASES

pytestmark = [pytest.mark.gpu, pytest.mark.beside("simulated GPUs")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 MiB in 3 files."""
    path = tmp_path_factory.mktemp("faulty")
    source = torch.Generator().manual_seed(5)
    for number in range(3):
        raw = {f"t{file}.{number}": torch.randint(0, 2**31, (512, 1024), dtype=torch.int32, generator=source) for file in range(6)}
        save_file(raw, path / f"model-{number}.safetensors")
    return path


@pytest.mark.parametrize(
    ("case", "locked_mib"), [*((case, 1 << 20) for case in CASES), ("little_can_be_locked", 9), ("little_can_be_locked", 0)]
)
def test_the_case_holds(directory: Path, case: str, locked_mib: int) -> None:
    argv = [sys.executable, "-m", "tests.gpu.faulty", case, str(directory)]
    done = subprocess.run(
        argv, env={**os.environ, "SIMCUDA_LOCKED_MIB": str(locked_mib)}, capture_output=True, text=True, timeout=90, check=False
    )
    assert (done.returncode, done.stdout) == (0, "held\n"), done.stderr
