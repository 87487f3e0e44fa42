"""What tests of loading have in common: tensors compared bit by bit, and files on a real disk that leave the page cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from modelcache.loader.residency import resident_share
from modelcache.loader.tensors import TORCH_DTYPES
from modelcache.ranges import ByteRange
from modelcache.testing.polling import until

Tensors = Mapping[str, torch.Tensor]


def of_every_dtype() -> dict[str, torch.Tensor]:
    """Some rows of each, with any bits; a scalar; and one without elements."""
    source = torch.Generator().manual_seed(0)
    tensors = {}
    for number, dtype in enumerate(TORCH_DTYPES.values()):
        raw = torch.randint(0, 2 if dtype is torch.bool else 256, (6, dtype.itemsize * (5 + number)), dtype=torch.uint8, generator=source)
        tensors[f"of.{number}"] = raw.view(dtype) if dtype is not torch.bool else raw.bool()
    return tensors | {"scalar": torch.tensor(3.5), "nothing": torch.empty(0, 7, dtype=torch.bfloat16)}


def same(mine: Tensors, theirs: Tensors) -> bool:
    """Names, devices, dtypes, shapes and every bit."""
    return set(mine) == set(theirs) and all(same_tensor(mine[name], theirs[name]) for name in theirs)


def same_tensor(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    if (mine.device, mine.dtype, mine.shape) != (theirs.device, theirs.dtype, theirs.shape):
        return False
    return mine.numel() == 0 or bool(torch.equal(_bits(mine), _bits(theirs)))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


@contextmanager
def directory_on_disk(name: str) -> Iterator[Path]:
    """A directory on a file system with O_DIRECT: the repository's own, where /tmp may be memory. Gone after the block."""
    directory = Path(__file__).parents[1] / ".cache" / f"test-{name}-{os.getpid()}"
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


def drop_from_cache(path: Path) -> None:
    """Until none of it is there: a page that something else looks at just then stays."""
    fd = os.open(path, os.O_RDONLY)

    def is_out() -> bool:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return not resident_share(fd, ByteRange(0, os.fstat(fd).st_size))  # None: this kernel doesn't tell

    try:
        os.fsync(fd)
        until(is_out, f"the page cache to be without {path}")
    finally:
        os.close(fd)
