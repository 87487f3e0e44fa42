"""Parts of tensors equal the `safetensors` package's, and take no more than their rows from the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import modelcache
from modelcache.errors import NoSuchTensor
from modelcache.loader.report import LoadReport
from modelcache.loader.tensors import TORCH_DTYPES
from modelcache.units import KIB, MIB

SHAPE = (7, 6, 4)
DTYPES = tuple(TORCH_DTYPES.values())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    source = torch.Generator().manual_seed(4)
    tensors = {"byte": torch.ones(1, dtype=torch.uint8), "scalar": torch.tensor(2.0), "nothing": torch.empty(0, 4)}
    for number, dtype in enumerate(DTYPES):
        raw = torch.randint(0, 2, (*SHAPE[:-1], SHAPE[-1] * dtype.itemsize), dtype=torch.uint8, generator=source)
        tensors[f"of.{number}"] = raw.view(dtype)
        tensors[f"row.{number}"] = raw.view(dtype)[0, 0].clone()
    save_file(tensors, path)
    return path


bounds = st.one_of(st.none(), st.integers(-9, 9))
parts = st.builds(slice, bounds, bounds)


@given(number=st.integers(0, len(DTYPES) - 1), index=st.lists(parts, max_size=2).map(tuple))
@settings(deadline=None, max_examples=100)
def test_what_python_means_by_the_same_slices(model: Path, number: int, index: tuple[slice, ...]) -> None:
    name = f"of.{number}"
    with safe_open(model, "pt") as file:
        whole = file.get_tensor(name)
    size = whole.dtype.itemsize
    expected = whole.view(torch.uint8)[index].contiguous()
    mine = modelcache.load_slice(model, name, index)
    assert (mine.dtype, mine.shape) == (whole.dtype, (*expected.shape[:-1], expected.shape[-1] // size))
    assert mine.is_contiguous()
    assert torch.equal(mine.view(torch.uint8), expected)


def test_parts_of_single_rows(model: Path) -> None:
    rows = modelcache.load(model, names=["row.*"])
    for index in (slice(1, 3), slice(-1, None), slice(0, 1), slice(3, 3), slice(None)):
        for name, whole in rows.items():
            expected = whole.view(torch.uint8).view(SHAPE[-1], -1)[index].flatten()
            mine = modelcache.load_slice(model, name, index)
            assert (mine.dtype, mine.shape) == (whole.dtype, (expected.numel() // whole.dtype.itemsize,))
            assert torch.equal(mine.view(torch.uint8), expected)


def test_only_the_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"before": torch.zeros(MIB), "w": torch.arange(4 * MIB, dtype=torch.int32).view(1024, -1)}, path)
    report = LoadReport()
    mine = modelcache.load_slice(path, "w", slice(10, 12), report=report)
    assert mine[:, 0].tolist() == [10 * 4096, 11 * 4096]
    assert mine.nbytes <= report.read_bytes.total() <= mine.nbytes + 4 * KIB


@pytest.mark.parametrize("index", [slice(0, 4, 2), (slice(None),) * 4])
def test_parts_that_there_are_not(model: Path, index: slice | tuple[slice, ...]) -> None:
    with pytest.raises(IndexError, match=r"`of\.3` of shape \[7, 6, 4\] has no part"):
        modelcache.load_slice(model, "of.3", index)
    with pytest.raises(NoSuchTensor):
        modelcache.load_slice(model, "of.*", slice(None))


def test_tensors_without_rows(model: Path) -> None:
    assert modelcache.load_slice(model, "scalar", ()).item() == 2.0
    assert modelcache.load_slice(model, "nothing", slice(0, 5)).shape == (0, 4)
    with pytest.raises(IndexError):
        modelcache.load_slice(model, "scalar", slice(None))
