"""Models of transformers come to a GPU as transformers brings them there, and not by way of host memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from modelcache.errors import NoSuchDevice
from modelcache.integrations import transformers as ours
from modelcache.loader.cuda import CudaDevice
from modelcache.loader.loading import memory
from modelcache.loader.memory import HostMemory
from modelcache.units import MIB
from tests.gpu.late import late

pytestmark = pytest.mark.gpu
GPU = "cuda:0"
SIZES = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 512}


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = torch.cuda.memory_allocated(GPU)
    yield
    torch.cuda.synchronize()
    gc.collect()
    assert torch.cuda.memory_allocated(GPU) <= before


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 MiB in bf16, most of it of experts, which transformers merges."""
    path = tmp_path_factory.mktemp("mixtral")
    config = transformers.MixtralConfig(num_hidden_layers=2, num_local_experts=4, **SIZES)
    transformers.MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(path, max_shard_size="16MB")
    return path


@pytest.fixture
def no_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: HostMemory, size_bytes: int) -> Any:
        raise AssertionError("tensors go by way of host memory")

    monkeypatch.setattr(HostMemory, "lend", refused)


def same(mine: Any, path: Path, **options: Any) -> bool:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
    tensors = [dict([*model.named_parameters(), *model.named_buffers()]) for model in (mine, theirs)]
    assert {tensor.device for tensor in tensors[0].values()} == {torch.device(GPU)}
    assert mine.config.to_diff_dict() == theirs.config.to_diff_dict()
    return tensors[0].keys() == tensors[1].keys() and all(
        torch.equal(tensor.cpu(), tensors[1][name]) for name, tensor in tensors[0].items()
    )


@pytest.mark.parametrize("device", [GPU, "cuda"])
def test_it_takes_the_memory_of_its_parameters(saved: Path, device: str, no_host_memory: None) -> None:
    before = torch.cuda.memory_allocated(GPU)
    model = ours.from_pretrained(saved, device=device)
    size_bytes = sum(parameter.nbytes for parameter in model.parameters())
    assert same(model, saved)
    assert torch.cuda.memory_allocated(GPU) - before < 1.1 * size_bytes, "what was merged is kept by nothing that stays"


def test_copies_that_are_late_are_waited_for_on_any_stream(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaDevice, "copy", late(CudaDevice.copy))
    with torch.cuda.stream(torch.cuda.Stream(GPU)):
        assert same(ours.from_pretrained(saved, device=GPU), saved)


def test_a_device_without_room_for_merging_gets_the_merged_model(saved: Path) -> None:
    torch.cuda.empty_cache()
    total_bytes = torch.cuda.get_device_properties(GPU).total_memory
    try:  # room for the parameters, and not for those that they are merged of
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(GPU) + 44 * MIB) / total_bytes, 0)
        assert same(ours.from_pretrained(saved, device=GPU), saved)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert memory.lent_bytes == 0


def test_another_dtype_is_cast_as_transformers_casts(saved: Path) -> None:
    assert same(ours.from_pretrained(saved, device=GPU, dtype=torch.float16), saved, dtype=torch.float16)


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(NoSuchDevice):
        ours.from_pretrained(tmp_path / "nothing", device=f"cuda:{torch.cuda.device_count()}")
