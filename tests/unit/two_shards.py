"""A small model in two files, for tests of loading."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from modelcache.units import KIB

SHARDS = 2
TENSORS = 12
"""In each."""
TENSOR_BYTES = 32 * KIB


def save_model(directory: Path) -> None:
    """Tensors `t00`, `t01`, …, each full of its number."""
    for shard in range(SHARDS):
        numbers = range(shard * TENSORS, (shard + 1) * TENSORS)
        tensors = {f"t{number:02}": torch.full((TENSOR_BYTES,), number, dtype=torch.uint8) for number in numbers}
        save_file(tensors, directory / f"{shard}.safetensors")
