"""`modelcache.integrations.transformers` gives what transformers gives of the same files, bit by bit, without copying what is in memory."""

from __future__ import annotations

import gc
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

import modelcache.integrations.transformers as ours
from modelcache import ModelCache
from modelcache.errors import BadCheckpoint, BadConfig, ModuleMismatch, NotFound
from modelcache.loader import shard_file
from modelcache.loader.loading import memory
from modelcache.loader.report import LoadReport
from modelcache.testing.servers import Nginx

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
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=2, **sizes | changes))


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


def mapped_file(tensor: torch.Tensor) -> str:
    """The file that this process has mapped where a tensor lies; empty: memory of its own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *name = line.split(maxsplit=5)
        start, stop = (int(part, 16) for part in span.split("-"))
        if start <= tensor.data_ptr() < stop:
            return "".join(name)
    raise AssertionError("the tensor lies in no memory of this process")


@pytest.mark.parametrize("kind", ["tied", "untied", "sharded"])
@pytest.mark.parametrize("auto_class", [None, transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM])
def test_a_model_of_a_uri_is_what_transformers_makes_of_the_files(saved: Path, cache: ModelCache, kind: str, auto_class: Any) -> None:
    mine = ours.from_pretrained(f"file://{saved / kind}", cache=cache, auto_class=auto_class)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved / kind)
    assert same(mine, theirs)
    assert (mine.lm_head.weight is mine.model.embed_tokens.weight) == (kind == "tied")
    assert mine.model.rotary_emb.inv_freq.device == torch.device("cpu")
    assert Path(mine.name_or_path).is_relative_to(cache.ensure(f"file://{saved / kind}").path)


def test_parameters_are_the_snapshots_pages_and_not_copies(saved: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "resident_share", lambda fd, span: 1.0)  # whatever this kernel tells
    uri = f"file://{saved / 'sharded'}"
    path = cache.ensure(uri).path
    model = ours.from_pretrained(uri, cache=cache)
    assert {Path(mapped_file(tensor)).parent for tensor in model.parameters()} == {path}

    before = {file: file.read_bytes() for file in path.glob("*.safetensors")}
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert {file: file.read_bytes() for file in before} == before

    expected = model(TOKENS).logits
    cache.evict(uri)  # nobody holds it any more; who has mapped it keeps the pages
    assert not path.exists()
    assert torch.equal(model(TOKENS).logits, expected)


def test_an_archive_on_a_web_server(saved: Path, cache: ModelCache, nginx: Nginx) -> None:
    with tarfile.open(nginx.directory / "llama.tar", "w") as archive:
        archive.add(saved / "sharded", arcname=".")
    mine = ours.from_pretrained(f"{nginx.endpoint}/llama.tar", cache=cache)
    assert same(mine, transformers.AutoModelForCausalLM.from_pretrained(saved / "sharded"))


def test_dtype_and_other_arguments_are_those_of_transformers(saved: Path) -> None:
    options: dict[str, Any] = {"dtype": torch.float16, "attn_implementation": "eager", "rms_norm_eps": 0.1}
    mine = ours.from_pretrained(saved / "untied", device="cpu", **options)
    assert same(mine, transformers.AutoModelForCausalLM.from_pretrained(saved / "untied", **options))
    assert mine.dtype is torch.float16
    assert mine.config._attn_implementation == "eager"
    assert mine.config.rms_norm_eps == 0.1
    given = transformers.AutoConfig.from_pretrained(saved / "untied", rms_norm_eps=0.2)
    assert ours.from_pretrained(saved / "untied", config=given).config.rms_norm_eps == 0.2


def test_weights_that_transformers_renames_and_merges(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    config = transformers.MixtralConfig(num_hidden_layers=2, num_local_experts=8, **sizes)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    named = set(load_file(tmp_path / "model.safetensors"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not named >= set(theirs.state_dict())  # else nothing is merged
    gc.collect()
    before_bytes = memory.lent_bytes
    mine = ours.from_pretrained(tmp_path)
    assert same(mine, theirs)
    stays_bytes = sum(parameter.nbytes for name, parameter in mine.named_parameters() if ".experts." not in name)
    assert memory.lent_bytes - before_bytes < 2 * stays_bytes < mine.num_parameters(), "what was merged is kept by nothing that stays"


def test_a_model_inside_of_a_larger_one_and_a_head_that_it_does_not_have(saved: Path) -> None:
    body = ours.from_pretrained(saved / "untied", auto_class=transformers.AutoModel)
    theirs = transformers.AutoModel.from_pretrained(saved / "untied")
    assert type(body) is transformers.LlamaModel
    assert torch.equal(body(TOKENS).last_hidden_state, theirs(TOKENS).last_hidden_state)

    with pytest.raises(ModuleMismatch, match=r"no values for `score\.weight`"):
        ours.from_pretrained(saved / "untied", auto_class=transformers.AutoModelForSequenceClassification)
    model = ours.from_pretrained(saved / "untied", auto_class=transformers.AutoModelForSequenceClassification, strict=False)
    assert torch.isfinite(model.score.weight).all()


def test_only_the_files_that_transformers_reads_are_read(saved: Path, tmp_path: Path) -> None:
    for kind in ("tied", "sharded"):
        path = Path(shutil.copytree(saved / kind, tmp_path / kind))
        save_file({"tok_embeddings.weight": torch.zeros(3)}, path / "consolidated.safetensors")
        index = {"weight_map": {"tok_embeddings.weight": "consolidated.safetensors"}}
        (path / "consolidated.safetensors.index.json").write_text(json.dumps(index))
        assert same(ours.from_pretrained(path), transformers.AutoModelForCausalLM.from_pretrained(saved / kind))


def test_a_generation_config_that_is_only_in_config_json(saved: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(saved / "untied", tmp_path / "model"))
    (path / "generation_config.json").unlink()
    config = json.loads((path / "config.json").read_text()) | {"eos_token_id": 7, "num_beams": 3}
    (path / "config.json").write_text(json.dumps(config))
    mine = ours.from_pretrained(path)
    assert same(mine, transformers.AutoModelForCausalLM.from_pretrained(path))
    assert mine.generation_config.eos_token_id == 7


def test_what_transformers_reads_by_itself(saved: Path, tmp_path: Path) -> None:
    report = LoadReport()
    path = Path(shutil.copytree(saved / "untied", tmp_path / "pickled"))
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved / "untied")
    assert same(ours.from_pretrained(path, report=report), theirs)
    assert same(ours.from_pretrained(saved / "untied", use_safetensors=True, report=report), theirs)
    assert report.tensors == 0

    path = Path(shutil.copytree(saved / "untied", tmp_path / "quantized"))
    config = json.loads((path / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ImportError, match=r"(?i)gptq"):  # what it says of every quantization that isn't installed
        ours.from_pretrained(path)


def in_fp8(path: Path) -> Path:
    """A Llama as DeepSeek and others publish theirs: linear layers in fp8, with a scale for each block of 128 × 128."""
    llama(hidden_size=128, intermediate_size=256).to(torch.bfloat16).save_pretrained(path)
    tensors = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        tensors[name] = tensor
        if name.endswith("_proj.weight") and min(tensor.shape) >= 128:
            blocks = tensor.float().reshape(tensor.shape[0] // 128, 128, tensor.shape[1] // 128, 128)
            scales = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
            tensors[name] = (blocks / scales[:, None, :, None]).reshape(tensor.shape).to(torch.float8_e4m3fn)
            tensors[name.replace(".weight", ".weight_scale_inv")] = scales
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "k_proj", "v_proj"],
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("auto_class", [None, transformers.AutoModelForCausalLM])
def test_a_checkpoint_in_fp8_is_what_transformers_makes_of_it(tmp_path: Path, auto_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = in_fp8(tmp_path / "fp8")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path)
    report = LoadReport()
    assert same(ours.from_pretrained(path, auto_class=auto_class, report=report), theirs)
    assert report.tensors == len(load_file(path / "model.safetensors"))
    assert theirs.dtype is torch.bfloat16  # without a GPU transformers gives the weights their values back

    report = LoadReport()
    assert same(ours.from_pretrained(path, device="cpu", report=report), theirs)  # on a device it is the quantizer that places them
    assert report.tensors == 0


def in_mxfp4(path: Path) -> Path:
    """As gpt-oss is published: experts in blocks of 32 four-bit numbers, each with a scale."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = transformers.GptOssConfig(num_hidden_layers=2, num_local_experts=2, num_experts_per_tok=1, vocab_size=128, **sizes)
    transformers.GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    source = torch.Generator().manual_seed(1)
    tensors = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = tensor.shape
            tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, generator=source)
            tensors[f"{name}_scales"] = torch.randint(120, 126, (experts, outputs, inputs // 32), dtype=torch.uint8, generator=source)
        else:
            tensors[name] = tensor
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    said = json.loads((path / "config.json").read_text())
    said["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    (path / "config.json").write_text(json.dumps(said))
    return path


def test_a_checkpoint_in_mxfp4_is_what_transformers_makes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = in_mxfp4(tmp_path / "mxfp4")
    report = LoadReport()
    mine = ours.from_pretrained(path, report=report)
    assert report.tensors == len(load_file(path / "model.safetensors"))
    assert same(mine, transformers.AutoModelForCausalLM.from_pretrained(path))


@pytest.mark.parametrize(
    ("config", "arguments", "error"),
    [
        ({"architectures": ["NoSuchForCausalLM"]}, {}, BadCheckpoint),
        ({}, {"revision": "main"}, BadConfig),
        ({}, {"state_dict": {}}, BadConfig),
        (None, {}, NotFound),
    ],
    ids=["unknown class", "revision", "state_dict", "no config"],
)
def test_what_is_refused(saved: Path, tmp_path: Path, config: Any, arguments: dict[str, Any], error: type[Exception]) -> None:
    path = Path(shutil.copytree(saved / "untied", tmp_path / "model"))
    if config is None:
        (path / "config.json").unlink()
    else:
        (path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | config))
    with pytest.raises(error):
        ours.from_pretrained(path, **arguments)


def test_a_tensor_of_another_shape_is_an_error(saved: Path) -> None:
    with pytest.raises(RuntimeError, match="mismatched"):
        ours.from_pretrained(saved / "untied", intermediate_size=80)


def test_a_tokenizer(tmp_path: Path, cache: ModelCache) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    (tmp_path / "model").mkdir()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "model")
    found = ours.tokenizer(f"file://{tmp_path / 'model'}", cache=cache)
    assert found("b a x")["input_ids"] == [1, 0, 2]
