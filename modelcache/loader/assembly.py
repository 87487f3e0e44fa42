"""A rank's parts of tensors, made of the pieces that were read for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from modelcache.loader.report import LoadReport
from modelcache.loader.shard_plan import Part, Share
from modelcache.loader.tensors import torch_form


def assembled(
    pieces: Iterable[tuple[str, torch.Tensor]], parts: Mapping[str, Part], share: Share, *, address: str, report: LoadReport
) -> Iterator[tuple[str, torch.Tensor]]:
    """The parts, each once its last piece is there: contiguous, and a copy only where the piece holds more than the part.

    Args:
        pieces: of each part in their order, by its name.
        address: what errors name.
        report: counts parts instead of pieces.

    Raises:
        BadCheckpoint: torch has no such dtype. What the pieces raise.
    """
    begun: dict[str, _Puzzle] = {}
    for name, tensor in pieces:
        part = parts[name]
        if len(part.pieces) > 1:
            puzzle = begun.get(name)
            if puzzle is None:
                puzzle = begun[name] = _Puzzle(part, tensor, address)
            puzzle.add(tensor)
            del tensor
            if puzzle.missing:
                report.tensors -= 1
                continue
            del begun[name]
            yield name, puzzle.whole
            del puzzle
        elif part.dim is not None:
            report.tensor_bytes -= part.whole.span.size_bytes - part.size_bytes
            tensor = _narrowed(tensor, part.dim, share)
            yield name, tensor
            del tensor
        else:
            yield name, tensor
            del tensor


class _Puzzle:
    """One part that is read in several pieces."""

    def __init__(self, part: Part, first: torch.Tensor, address: str) -> None:
        self.missing = len(part.pieces)
        self.whole = torch.empty(torch_form(part.entry, address)[1], dtype=first.dtype, device=first.device)
        self._rows = _raw(self.whole).view(self.missing, -1)

    def add(self, piece: torch.Tensor) -> None:
        self._rows[len(self._rows) - self.missing].copy_(_raw(piece).flatten())
        self.missing -= 1


def _narrowed(tensor: torch.Tensor, dim: int, share: Share) -> torch.Tensor:
    size = tensor.shape[dim] // share.world
    return _raw(tensor).narrow(dim, share.rank * size, size).clone(memory_format=torch.contiguous_format).view(tensor.dtype)


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    """The same where torch copies its elements; of one byte each as bytes, because torch can't copy some of those."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 and tensor.dim() else tensor
