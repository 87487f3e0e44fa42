"""A rank's parts equal slices of the full tensors bit by bit; what can't be split is told by tensor, dimension and both sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import modelcache
from modelcache import Owned
from modelcache.errors import BadShard, NoSuchTensor
from modelcache.loader import shard_plan
from modelcache.loader.checkpoint import open_checkpoint
from modelcache.loader.header import Dtype
from modelcache.loader.plan import ALIGNMENT
from modelcache.loader.report import LoadReport
from modelcache.loader.shard_plan import RUN_BYTES, Rule, ShardPlan, Share, extents_of_parts
from modelcache.loader.tensors import TORCH_DTYPES
from modelcache.units import KIB

SPLIT = [dtype for kind, dtype in TORCH_DTYPES.items() if kind is not Dtype.BOOL]


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy()) if tensor.numel() else b""


def of_shape(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    size_bytes = dtype.itemsize * torch.Size(shape).numel()
    return torch.randint(0, 256, (size_bytes,), dtype=torch.uint8, generator=source).view(dtype).view(shape)


def sliced(tensor: torch.Tensor, rule: Rule, rank: int, world: int) -> torch.Tensor:
    """By torch, through integers of the same size: it can't slice and copy every dtype."""
    if not isinstance(rule, int):
        return tensor
    size = tensor.shape[rule] // world
    whole = tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor
    return whole.narrow(rule, rank * size, size).contiguous().view(tensor.dtype)


@st.composite
def split_tensors(draw: st.DrawFn) -> tuple[int, dict[str, tuple[tuple[int, ...], torch.dtype, Rule]]]:
    """A world, and tensors that it can split: shape, dtype and rule."""
    world = draw(st.sampled_from([1, 2, 3, 4]))
    found: dict[str, tuple[tuple[int, ...], torch.dtype, Rule]] = {}
    for number in range(draw(st.integers(1, 5))):
        dtype = draw(st.sampled_from(SPLIT))
        least = 1 if dtype is torch.float4_e2m1fn_x2 else 0  # two elements in a byte are no scalar
        shape = list(draw(st.lists(st.integers(0, 5), min_size=least, max_size=4)))
        rules: list[Rule] = [None, Owned(draw(st.integers(0, world - 1)))]
        if shape:
            dim = draw(st.integers(-len(shape), len(shape) - 1))
            shape[dim] *= world
            rules.append(dim)
        found[f"t{number}"] = tuple(shape), dtype, draw(st.sampled_from(rules))
    return world, found


@given(split_tensors(), st.sampled_from([1, 24, RUN_BYTES]), st.sampled_from(["file", "given"]))
@example((2, {"t0": ((1, 1, 4), torch.float32, 2), "t1": ((1, 4, 1), torch.float32, -2)}), 1, "file")
@settings(max_examples=120, deadline=None)
def test_parts_are_slices_and_together_the_model(
    tmp_path_factory: pytest.TempPathFactory,
    made: tuple[int, dict[str, tuple[tuple[int, ...], torch.dtype, Rule]]],
    run_bytes: int,
    order: str,
) -> None:
    world, wanted = made
    path = tmp_path_factory.mktemp("parts") / "model.safetensors"
    save_file({name: of_shape(shape, dtype, seed) for seed, (name, (shape, dtype, _)) in enumerate(wanted.items())}, path)
    full = load_file(path)
    rules = {name: rule for name, (_, _, rule) in wanted.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_plan, "RUN_BYTES", run_bytes)
        for rank in range(world):
            report = LoadReport()
            found = modelcache.load(path, shard=(rank, world, rules), order="given" if order == "given" else "file", report=report)
            mine = {name for name, rule in rules.items() if not isinstance(rule, Owned) or rule.rank == rank}
            assert set(found) == mine
            for name, tensor in found.items():
                expected = sliced(full[name], rules[name], rank, world)
                assert (tensor.dtype, tensor.shape, raw(tensor)) == (expected.dtype, expected.shape, raw(expected))
                assert tensor.is_contiguous()
            assert (report.tensors, report.tensor_bytes) == (len(found), sum(each.nbytes for each in found.values()))
    path.unlink()


# -- what is read -----------------------------------------------------------------------------------------------------


def extents(path: Path, rules: Mapping[str, Rule], rank: int, world: int, *, common_apart: bool) -> Iterator[tuple[int, int, list[str]]]:
    checkpoint = open_checkpoint(path)
    parts = Share(rank, world, ShardPlan(rules)).parts(checkpoint, list(checkpoint.place))
    for extent in extents_of_parts(parts, order="file", destination=lambda name: None, common_apart=common_apart):
        yield extent.span.start, extent.span.stop, [entry.name for entry in extent.tensors]


def test_long_runs_are_read_alone_and_what_all_need_is_the_same_for_all(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    rows = {
        "a.columns": torch.zeros(512, 512),  # 1 MiB: half of its rows are 512 KiB, of its columns 1 KiB in a row
        "b.rows": torch.zeros(512, 512),
        "c.short": torch.zeros(128, 512),  # half of its rows are 128 KiB
        "d.whole": torch.zeros(512, 512),
        "e.owned": torch.zeros(512, 512),
        "f.deep": torch.zeros(3, 256, 512),  # half of each of the three is 256 KiB
    }
    save_file(rows, path)
    rules: dict[str, Rule] = {"*.columns": 1, "*.rows": 0, "c.*": 0, "e.owned": Owned(1), "f.deep": 1}
    found = [list(extents(path, rules, rank, 2, common_apart=True)) for rank in (0, 1)]
    common = [[each for each in mine if each[2][0] in ("a.columns", "c.short", "d.whole")] for mine in found]
    assert common[0] == common[1]
    assert [names for _, _, names in common[0]] == [["a.columns"], ["c.short", "d.whole"]]
    alone = [[each for each in mine if each not in common[0]] for mine in found]
    assert [names for _, _, names in alone[0]] == [["b.rows"], ["f.deep"], ["f.deep"], ["f.deep"]]
    assert [names for _, _, names in alone[1]] == [["b.rows"], ["e.owned"], ["f.deep"], ["f.deep"], ["f.deep"]]
    size_bytes = path.stat().st_size
    read_bytes = sum(stop - start for mine in alone for start, stop, _ in mine) + sum(stop - start for start, stop, _ in common[0])
    assert size_bytes - 4 * KIB <= read_bytes <= size_bytes + ALIGNMENT * sum(map(len, found))
    report = LoadReport()
    loaded = modelcache.load(path, shard=(1, 2, rules), report=report)
    assert {name: tuple(each.shape) for name, each in loaded.items()} == {
        "a.columns": (512, 256),
        "b.rows": (256, 512),
        "c.short": (64, 512),
        "d.whole": (512, 512),
        "e.owned": (512, 512),
        "f.deep": (3, 128, 512),
    }


def test_a_name_wins_over_patterns_and_the_longer_pattern_over_the_shorter() -> None:
    plan = ShardPlan({"*": 0, "model.layers.*.weight": 1, "model.layers.0.weight": None, "model.*": 2})
    names = ["model.layers.0.weight", "model.layers.1.weight", "model.norm", "head"]
    assert [plan.rule(name) for name in names] == [None, 1, 2, 0]
    assert ShardPlan({}).rule("head") is None


# -- what can't be ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    tensors = {
        "w": torch.zeros(6, 4),
        "scalar": torch.tensor(1.0),
        "packed": torch.zeros(3, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("rules", "rank", "world", "said", "expected", "got"),
    [
        ({"w": 0}, 0, 4, "dimension 0 of tensor `w` can't be split in 4 equal parts", "a multiple of 4", "6"),
        ({"w": -1}, 0, 3, "dimension -1 of tensor `w` can't be split in 3 equal parts", "a multiple of 3", "4"),
        ({"w": 2}, 0, 2, "tensor `w` of shape [6, 4] has no dimension 2", "-2 to 1", "2"),
        ({"w": 2}, 0, 1, "tensor `w` of shape [6, 4] has no dimension 2", "-2 to 1", "2"),
        ({"scalar": 0}, 0, 2, "tensor `scalar` of shape [] has no dimension 0", "None: it has no dimensions", "0"),
        ({"packed": 1}, 0, 4, "ends within a byte", "whole bytes", "4 bits"),
        ({"w": 0}, 2, 2, "the rank is none of the world's", "0 to 1", "2"),
        ({"w": Owned(2)}, 0, 2, "the owner of `w` is none of the world's", "0 to 1", "2"),
        ({"w": "colwise"}, 0, 2, "rule for `w` is no dimension", None, "'colwise'"),
        ({"w": True}, 0, 2, "rule for `w` is no dimension", None, "True"),
    ],
)
def test_what_can_not_be_split(small: Path, rules: dict[str, Rule], rank: int, world: int, said: str, expected: str, got: str) -> None:
    with pytest.raises(BadShard) as caught:
        modelcache.load(small, shard=(rank, world, rules))
    assert said in caught.value.message
    assert (caught.value.expected, caught.value.got) == (expected, got)


def test_a_plan_for_another_model(small: Path) -> None:
    with pytest.raises(NoSuchTensor, match=r"the plan has `\*\.q_proj\.weight`, and no tensor fits it"):
        modelcache.load(small, shard=(0, 2, {"w": 0, "*.q_proj.weight": 0}))
    assert set(modelcache.load(small, names=["scalar"], shard=(0, 2, {"w": 0}))) == {"scalar"}


def test_a_group_without_a_shard(small: Path) -> None:
    with pytest.raises(BadShard, match="this load has none"):
        modelcache.load(small, group="job")
