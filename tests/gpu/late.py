"""Copies to a GPU that are late."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from modelcache.loader.cuda import CudaDevice
from modelcache.loader.device import Copy, Target
from modelcache.loader.layout import Piece

CYCLES = 20_000_000
"""Of the device's clock: a hundredth of a second."""


def late(copy: Callable[..., Copy]) -> Callable[..., Copy]:
    """Copies that begin a hundredth of a second after they were asked for."""

    def asked(device: CudaDevice, source: torch.Tensor, pieces: Sequence[Piece], target: Target) -> Copy:
        with torch.cuda.stream(device._stream):
            torch.cuda._sleep(CYCLES)
        return copy(device, source, pieces, target)

    return asked
