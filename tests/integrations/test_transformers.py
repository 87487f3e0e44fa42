"""`modelcache.integrations.transformers` gives what transformers gives of the same files, bit by bit, without copying what is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import modelcache.integrations.transformers as ours
from modelcache import ModelCache

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def llama(**changes: Any) -> Any:
    """A Llama of two layers with random weights."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128}
    torch.manual_seed(7)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=2, **sizes, **changes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llamas as transformers saves them: `tied`, `untied`, and `sharded` (untied, bf16, a generation config of its own)."""
    root = tmp_path_factory.mktemp("llamas")
    llama(tie_word_embeddings=True).save_pretrained(root / "tied")
    llama(tie_word_embeddings=False).save_pretrained(root / "untied")
    model = llama(tie_word_embeddings=False).to(torch.bfloat16)
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(root / "sharded", max_shard_size="40KB")
    assert len(list((root / "sharded").glob("*.safetensors"))) > 2
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ModelCache]:
    with ModelCache(tmp_path / "store") as opened:
        yield opened


def same(mine: Any, theirs: Any) -> bool:
    """Class, configuration, parameters and all buffers, and what they compute, bit by bit."""
    with torch.no_grad():
        logits = mine(TOKENS).logits, theirs(TOKENS).logits
    tensors = [dict([*model.named_parameters(), *model.named_buffers()]) for model in (mine, theirs)]
    return (
        type(mine) is type(theirs)
        and mine.config.to_diff_dict() == theirs.config.to_diff_dict()
        and mine.generation_config.to_dict() == theirs.generation_config.to_dict()
        and not mine.training
        and tensors[0].keys() == tensors[1].keys()
        and all(torch.equal(tensor, tensors[1][name]) and tensor.dtype == tensors[1][name].dtype for name, tensor in tensors[0].items())
        and torch.equal(*logits)
    )


def mapped_files(tensor: torch.Tensor) -> str:
    """What this process has mapped at the place of a tensor; empty: memory of its own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = (line + " ").split(maxsplit=5) if line.count(" ") >= 5 else (line.split()[0], "")
        start, stop = (int(part, 16) for part in span.split("-"))
        if start <= tensor.data_ptr() < stop:
            return name.strip()
    raise AssertionError("a tensor lies in no memory of this process")


@pytest.mark.parametrize("kind", ["tied", "untied", "sharded"])
@pytest.mark.parametrize("auto_class", [None, transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM])
def test_a_model_of_a_uri_is_what_transformers_makes_of_the_files(saved: Path, cache: ModelCache, kind: str, auto_class: Any) -> None:
    mine = ours.from_pretrained(f"file://{saved / kind}", cache=cache, auto_class=auto_class)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved / kind)
    assert same(mine, theirs)
    assert (mine.lm_head.weight is mine.model.embed_tokens.weight) == (kind == "tied")
    assert mine.model.rotary_emb.inv_freq.device == torch.device("cpu")
    assert Path(mine.name_or_path).is_relative_to(cache.ensure(f"file://{saved / kind}").path)


def test_parameters_are_the_snapshots_pages_and_not_copies(saved: Path, cache: ModelCache) -> None:
    path = cache.ensure(f"file://{saved / 'sharded'}").path
    for file in path.glob("*.safetensors"):
        file.read_bytes()
    model = ours.from_pretrained(f"file://{saved / 'sharded'}", cache=cache)
    files = {mapped_files(tensor) for tensor in model.parameters()}
    assert {Path(name).parent for name in files} == {path}
    weight = model.lm_head.weight
    before = {file: file.read_bytes() for file in path.glob("*.safetensors")}
    with torch.no_grad():
        weight.add_(1)
    assert {file: file.read_bytes() for file in before} == before
