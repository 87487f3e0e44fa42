"""`load_into`: the tensors of a checkpoint in a module of torch, by name; what doesn't fit is refused before anything is changed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import modelcache
from modelcache import ModelCache
from modelcache.errors import BadCheckpoint, BadShard, ModuleMismatch
from modelcache.loader.files import Way
from modelcache.loader.report import LoadReport
from modelcache.loader.shard_plan import Rule


class Net(nn.Module):  # type: ignore[misc]  # torch is not looked into
    """A tied weight, a persistent buffer, and one that is not; a frozen parameter, and one of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight
        self.inner[0].bias.requires_grad_(False)
        self.phase = nn.Parameter(torch.rand(2, dtype=torch.complex64))
        self.register_buffer("scale", torch.full((4,), 2.0), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.inner(self.embed(tokens)) * self.scale)
        return found


def saved(directory: Path, module: nn.Module, *, prefix: str = "", without: tuple[str, ...] = ("head.weight",)) -> Path:
    path = directory / "model.safetensors"
    tensors = {prefix + name: tensor.detach().clone() for name, tensor in module.state_dict().items() if name not in without}
    save_file(tensors, path)
    return path


def contents(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture
def net() -> Net:
    torch.manual_seed(1)
    made = Net()
    made.eval()
    return made


@pytest.fixture
def other() -> Net:
    torch.manual_seed(2)
    made = Net()
    made.eval()
    return made


def test_values_are_copied_into_the_modules_own_memory(tmp_path: Path, net: Net, other: Net) -> None:
    before = {name: tensor.data_ptr() for name, tensor in other.state_dict().items()}
    report = modelcache.load_into(other, saved(tmp_path, net.double()))
    assert equal(contents(other), contents(net.float()))
    assert {name: tensor.data_ptr() for name, tensor in other.state_dict().items()} == before
    assert report.missing == report.unexpected == report.without_values == ()
    assert torch.equal(other(torch.arange(8)), net(torch.arange(8)))


@pytest.mark.parametrize("on_meta", [True, False])
def test_the_tensors_themselves_are_taken_and_what_is_tied_stays_tied(tmp_path: Path, net: Net, on_meta: bool) -> None:
    path = saved(tmp_path, net)
    with torch.device("meta" if on_meta else "cpu"):
        empty = Net().eval()
    empty.scale = torch.full((4,), 2.0)
    before = list(empty.parameters())
    modelcache.load_into(empty, path, assign=not on_meta)
    assert equal(contents(empty), contents(net))
    assert empty.head.weight is empty.embed.weight
    assert isinstance(empty.embed.weight, nn.Parameter)
    assert not any(parameter is old for parameter in empty.parameters() for old in before)
    assert [p.requires_grad for p in empty.parameters()] == [p.requires_grad for p in net.parameters()]
    assert torch.equal(empty(torch.arange(8)), net(torch.arange(8)))


def test_a_part_of_a_checkpoint_by_its_prefix_out_of_the_cache(tmp_path: Path, net: Net, other: Net) -> None:
    (tmp_path / "model").mkdir()
    path = saved(tmp_path / "model", net, prefix="net.")
    with ModelCache(tmp_path / "store") as cache:
        modelcache.load_into(other, path.parent.as_uri(), prefix="net.", cache=cache)
    assert equal(contents(other), contents(net))


def test_what_does_not_fit_changes_nothing(tmp_path: Path, net: Net, other: Net) -> None:
    before = contents(other)
    path = saved(tmp_path, net, without=("head.weight", "inner.0.weight"))
    with pytest.raises(ModuleMismatch, match=r"no tensor for `inner\.0\.weight`"):
        modelcache.load_into(other, path)
    net.inner.append(nn.Linear(4, 4))
    with pytest.raises(ModuleMismatch, match=r"the module has no `inner\.2\.bias`, `inner\.2\.weight`"):
        modelcache.load_into(other, saved(tmp_path, net))
    net.inner = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(4))
    for strict in (True, False):
        with pytest.raises(ModuleMismatch, match=r"`inner\.0\.bias` and 1 more has another shape") as caught:
            modelcache.load_into(other, saved(tmp_path, net), strict=strict)
        assert (caught.value.expected, caught.value.got) == ("[4]", "[5]")
    assert equal(contents(other), before)


def test_names_may_differ_where_the_caller_looks(tmp_path: Path, net: Net, other: Net) -> None:
    before = contents(other)
    net.register_buffer("more", torch.ones(3))
    found = modelcache.load_into(other, saved(tmp_path, net, without=("head.weight", "embed.weight")), strict=False)
    assert (found.missing, found.unexpected) == (("embed.weight", "head.weight"), ("more",))
    assert torch.equal(other.embed.weight, before["embed.weight"])
    assert torch.equal(other.inner[0].weight, net.inner[0].weight)


def test_a_buffer_that_no_checkpoint_holds_is_not_left_on_the_meta_device_in_silence(tmp_path: Path, net: Net) -> None:
    path = saved(tmp_path, net)
    with torch.device("meta"):
        empty = Net()
    with pytest.raises(ModuleMismatch, match=r"buffers that are on the meta device: `scale`"):
        modelcache.load_into(empty, path)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert modelcache.load_into(empty, path, strict=False).without_values == ("scale",)


def test_two_names_of_a_tied_tensor_must_agree(tmp_path: Path, net: Net, other: Net) -> None:
    with torch.no_grad():
        net.embed.weight[0, 0] = float("nan")
    modelcache.load_into(other, saved(tmp_path, net, without=()))
    assert torch.equal(other.embed.weight[1:], net.embed.weight[1:])
    net.head.weight = nn.Parameter(net.embed.weight + 1)
    with pytest.raises(BadCheckpoint, match=r"`embed\.weight` and `head\.weight` differ"):
        modelcache.load_into(other, saved(tmp_path, net, without=()))


class Halves(nn.Module):  # type: ignore[misc]  # torch is not looked into
    """One of two ranks: half of a layer's outputs, half of the next one's inputs, one of two experts, a norm that both have."""

    def __init__(self, rank: int, world: int = 2) -> None:
        super().__init__()
        self.up = nn.Linear(512, 1024 // world, bias=False)
        self.down = nn.Linear(1024 // world, 512, bias=False)
        self.experts = nn.ModuleDict({str(number): nn.Linear(8, 8) for number in range(2) if world == 1 or number == rank})
        self.norm = nn.LayerNorm(512)


SPLIT: dict[str, Rule] = {"up.weight": 0, "down.weight": 1, "experts.0.*": modelcache.Owned(0), "experts.1.*": modelcache.Owned(1)}


@pytest.fixture
def whole() -> Halves:
    torch.manual_seed(3)
    return Halves(0, world=1)


def check_half(rank: int, half: Halves, whole: Halves) -> None:
    assert torch.equal(half.up.weight, whole.up.weight.chunk(2, 0)[rank])
    assert torch.equal(half.down.weight, whole.down.weight.chunk(2, 1)[rank])
    assert torch.equal(half.experts[str(rank)].weight, whole.experts[str(rank)].weight)
    assert torch.equal(half.norm.weight, whole.norm.weight)


@pytest.mark.parametrize("on_meta", [True, False])
def test_a_module_that_is_one_ranks_part(tmp_path: Path, whole: Halves, on_meta: bool) -> None:
    path = saved(tmp_path, whole, without=())
    for rank in range(2):
        with torch.device("meta" if on_meta else "cpu"):
            half = Halves(rank)
        found = modelcache.load_into(half, path, shard=(rank, 2, SPLIT))
        assert found.missing == found.unexpected == ()
        check_half(rank, half, whole)


def test_a_module_that_is_no_part_of_the_plan_is_left_as_it_was(tmp_path: Path, whole: Halves) -> None:
    path = saved(tmp_path, whole, without=())
    module = Halves(0)
    before = contents(module)
    with pytest.raises(ModuleMismatch, match=r"`down\.weight` has another shape") as caught:
        modelcache.load_into(module, path, shard=(0, 2, SPLIT | {"down.weight": None}))
    assert (caught.value.expected, caught.value.got) == ("[512, 512]", "[512, 1024]")
    with pytest.raises(ModuleMismatch, match=r"no tensor for `experts\.0"):
        modelcache.load_into(module, path, shard=(1, 2, SPLIT))
    with pytest.raises(BadShard, match="this load has none"):
        modelcache.load_into(module, path, group="nobody")
    assert equal(contents(module), before)


def test_ranks_of_a_group_fill_their_modules_from_one_read(tmp_path: Path, whole: Halves) -> None:
    path = saved(tmp_path, whole, without=())
    halves, reports = [Halves(rank) for rank in range(2)], [LoadReport(), LoadReport()]

    def load(rank: int) -> None:
        modelcache.load_into(halves[rank], path, shard=(rank, 2, SPLIT), group=f"halves-{tmp_path}", report=reports[rank])

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(load, range(2)))
    for rank, half in enumerate(halves):
        check_half(rank, half, whole)
    assert any(report.read_bytes[Way.SHARED] for report in reports)
