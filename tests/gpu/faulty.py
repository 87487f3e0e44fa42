"""`python -m tests.gpu.faulty CASE DIRECTORY`: what a load does with simulated GPUs that fail. Each in a process of its own: a device that
is lost is lost to its process."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import modelcache
from modelcache.errors import DeviceFault
from tests.tensors import Tensors, same

RUNTIME = "libcudart.so.13"


def lost_in_the_middle(directory: Path, expected: Tensors) -> None:
    """The load that goes on ends, so does the next, and both name the device; host memory is still loaded to."""
    tensors = modelcache.stream(directory, device="cuda:0")
    next(tensors)
    ctypes.CDLL(RUNTIME).simcuda_lose(0)
    with pytest.raises(DeviceFault, match=r"illegal memory access.*cuda:0"):
        list(tensors)
    with pytest.raises(DeviceFault, match="cuda:0"):
        modelcache.load(directory, device="cuda:0")
    assert same(modelcache.load(directory), expected)


def no_other_device_is_asked(directory: Path, expected: Tensors) -> None:
    """A device that is set up for nothing takes hundreds of MiB."""
    loaded = modelcache.load(directory, device="cuda:1")
    modelcache.release_memory()
    assert [ctypes.CDLL(RUNTIME).simcuda_begun(number) for number in (0, 1)] == [0, 1]
    assert same({name: tensor.cpu() for name, tensor in loaded.items()}, expected)


def two_devices(directory: Path, expected: Tensors) -> None:
    loaded = modelcache.load(directory, device={"*.0": "cuda:0", "*.1": "cuda:1"})
    assert {name: tensor.device for name, tensor in loaded.items()} == {
        name: torch.device("cpu" if name.endswith("2") else f"cuda:{name[-1]}") for name in expected
    }
    assert same({name: tensor.cpu() for name, tensor in loaded.items()}, expected)


def little_can_be_locked(directory: Path, expected: Tensors) -> None:
    """As much as SIMCUDA_LOCKED_MIB says, and a load doesn't take more."""
    loaded = modelcache.load(directory, device="cuda:0")
    assert same({name: tensor.cpu() for name, tensor in loaded.items()}, expected)
    assert ctypes.CDLL(RUNTIME).simcuda_locked_bytes() <= int(os.environ["SIMCUDA_LOCKED_MIB"]) << 20


def in_a_fork(directory: Path, expected: Tensors) -> None:
    """The child is told; host memory is loaded to there; the parent's tensors and devices are as they were."""
    loaded = modelcache.load(directory, device="cuda:0")
    if (pid := os.fork()) == 0:
        with pytest.raises(DeviceFault, match="fork"):
            modelcache.load(directory, device="cuda:0")
        assert same(modelcache.load(directory), expected)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    for each in (loaded, modelcache.load(directory, device="cuda:0")):
        assert same({name: tensor.cpu() for name, tensor in each.items()}, expected)


CASES: dict[str, Callable[[Path, Tensors], None]] = {
    case.__name__: case for case in (lost_in_the_middle, no_other_device_is_asked, two_devices, little_can_be_locked, in_a_fork)
}

if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork of a process that used OpenMP must not: libgomp ends there
    files = Path(sys.argv[2])
    CASES[sys.argv[1]](files, {name: tensor.clone() for path in files.glob("*.safetensors") for name, tensor in load_file(path).items()})
    gc.collect()
    print("held")
