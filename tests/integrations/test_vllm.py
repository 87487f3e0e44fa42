"""vLLM's load format `modelcache` against the interface that vLLM gives to plugins; `test_vllm_engine.py` has the engine itself."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import modelcache
from modelcache import ModelCache
from modelcache.arriving.model import AskedModel
from modelcache.arriving.tensors import stream_opened
from modelcache.errors import BadCheckpoint, BadConfig, InvalidUri, ModelCacheError, ModuleMismatch, NotFound, SourceChanged
from tests.integrations.vllm_stand_in import VLLM, Model, ModelConfig, stand_in

LAYERS = ("a", "b")


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VLLM]:
    monkeypatch.setenv("MODELCACHE_ROOT", str(tmp_path / "store"))
    with stand_in() as found:
        yield found


def tensors(seed: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    layers = {f"layers.{name}.weight": torch.rand(4, 4, generator=source) for name in LAYERS}
    return {"norm": torch.rand(4, generator=source), **layers}


def saved(directory: Path, seed: int, config: str = "{}") -> Path:
    """A model's directory; its tensors are those of `seed`."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors(seed), directory / "model.safetensors")
    (directory / "config.json").write_text(config)
    return directory


def without_weights(directory: Path, config: str = "{}") -> ModelConfig:
    directory.mkdir()
    (directory / "config.json").write_text(config)
    return ModelConfig(str(directory))


def holds(model: Model, seed: int) -> bool:
    return all(torch.equal(tensor, dict(model.named_parameters())[name]) for name, tensor in tensors(seed).items())


def test_vllm_finds_the_plugin_and_the_format() -> None:
    [point] = importlib.metadata.entry_points(group="vllm.general_plugins", name="modelcache")
    with stand_in() as found:
        point.load()()  # as vLLM does in each process, and here once more
        assert list(found.formats) == ["modelcache"]


def test_a_uris_weights_in_file_order_with_the_model_that_vllm_named(vllm: VLLM, tmp_path: Path) -> None:
    uri = saved(tmp_path / "origin", 1).as_uri()
    model, config = Model(LAYERS), without_weights(tmp_path / "model")
    vllm.loader({"uri": uri}).load_weights(model, config)
    assert holds(model, 1)
    with ModelCache() as cache:  # of the environment, as the loader's
        assert model.order == [entry.name for entry in _entries(cache.find(uri).path / "model.safetensors")]


def _entries(path: Path) -> Any:
    from modelcache import open_checkpoint

    return open_checkpoint(path).shards[0].header.tensors


def test_host_tensors_whatever_default_device_and_dtype_vllm_has_set(vllm: VLLM, tmp_path: Path) -> None:
    directory = saved(tmp_path / "model", 2)
    save_file({**tensors(2), "nothing": torch.empty(0, 3)}, directory / "model.safetensors")
    model = Model(LAYERS)
    model.register_parameter("nothing", torch.nn.Parameter(torch.empty(0, 3)))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            vllm.loader().load_weights(model, ModelConfig(str(directory)))
    finally:
        torch.set_default_dtype(before)
    assert holds(model, 2)


def test_download_brings_a_model_in_and_loads_nothing(vllm: VLLM, tmp_path: Path) -> None:
    uri = saved(tmp_path / "origin", 1).as_uri()
    vllm.loader({"uri": uri}).download_model(without_weights(tmp_path / "model"))
    with ModelCache() as cache:
        assert cache.find(uri).path.is_dir()


@pytest.mark.parametrize("by_uri", [True, False])
def test_where_there_are_several_checkpoints_one_is_named(vllm: VLLM, tmp_path: Path, by_uri: bool) -> None:
    directory = saved(tmp_path / "model", 1)
    save_file(tensors(2), directory / "consolidated.safetensors")
    config, common = ModelConfig(str(directory)), {"uri": directory.as_uri()} if by_uri else {}
    with pytest.raises(BadCheckpoint, match="two shards have a tensor"):
        vllm.loader(common).load_weights(Model(LAYERS), config)
    for name, seed in (("model.safetensors", 1), ("consolidated.safetensors", 2)):
        model = Model(LAYERS)
        vllm.loader({**common, "weights": name}).load_weights(model, config)
        assert holds(model, seed)
    with pytest.raises(NotFound, match=r"no `x\.safetensors`"):
        vllm.loader({**common, "weights": "x.safetensors"}).load_weights(Model(LAYERS), config)


@pytest.mark.parametrize("name", ["model.safetensors", "consolidated.safetensors.index.json"])
def test_one_of_several_checkpoints_is_not_awaited_whole(vllm: VLLM, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(files: AskedModel) -> Path:
        raise AssertionError("all of it was awaited before a tensor came")

    monkeypatch.setattr(AskedModel, "whole", whole)
    directory = saved(tmp_path / "model", 1)
    save_file(tensors(2), directory / "consolidated-1.safetensors")
    index = {"weight_map": dict.fromkeys(tensors(2), "consolidated-1.safetensors")}
    (directory / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    model = Model(LAYERS)
    vllm.loader({"uri": directory.as_uri(), "weights": name}).load_weights(model, ModelConfig(str(directory)))
    assert holds(model, 2 if name.startswith("consolidated") else 1)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["s3://models/llama"], "is no JSON object"),
        ({"url": "s3://models/llama"}, "has no key `url`"),
        ({"uri": 3}, "`uri` in .* is not text"),
        ({"uri": ""}, "`uri` in .* is not text"),
        ({"together": "no"}, "`together` in .* is not true or false"),
        ({"uri": "s3://"}, "not a storage URI"),
        ({"weights": "../secrets.safetensors"}, "leads out of the model"),
        ({"weights": "/etc/model.safetensors"}, "leads out of the model"),
    ],
)
def test_an_extra_config_that_makes_no_sense_is_refused_before_anything_is_built(vllm: VLLM, extra: Any, said: str) -> None:
    with pytest.raises((BadConfig, InvalidUri), match=said):
        vllm.loader(extra)


def test_a_credential_in_the_uri_is_refused_and_not_told(vllm: VLLM) -> None:
    with pytest.raises(BadConfig, match="holds a credential") as caught:
        vllm.loader({"uri": "https://someone:hunter2@models.example/llama.tar"})
    assert "hunter2" not in f"{caught.value!r} {caught.value} {caught.value.hint}"


def test_a_name_that_is_no_directory_here_is_refused(vllm: VLLM) -> None:
    with pytest.raises(BadConfig, match="reads a directory"):
        vllm.loader().load_weights(Model(LAYERS), ModelConfig("meta-llama/Llama-3.1-8B"))


def test_a_draft_model_gets_its_own_weights_and_a_part_of_the_model_the_uris(vllm: VLLM, tmp_path: Path) -> None:
    uri = saved(tmp_path / "origin", 1).as_uri()
    config = without_weights(tmp_path / "model")
    vllm.target.model = config.model
    loader = vllm.loader({"uri": uri})
    draft = ModelConfig(str(saved(tmp_path / "draft", 2)), runner_type="draft")
    built = Model(LAYERS)
    loader.load_weights(built, draft)
    assert holds(built, 2)
    built = Model(LAYERS)
    loader.load_weights(built, ModelConfig(config.model, runner_type="draft"))  # as of multi-token prediction
    assert holds(built, 1)


def test_a_reload_from_another_directory_reads_that_one(vllm: VLLM, tmp_path: Path) -> None:
    extra = {"uri": saved(tmp_path / "origin", 1).as_uri()}
    config, model = without_weights(tmp_path / "model"), Model(LAYERS)
    vllm.loader(extra).load_weights(model, config)
    model.load_weights(vllm.loader(extra).get_all_weights(config, model))
    assert holds(model, 1)
    config.model = str(saved(tmp_path / "trained", 3))  # what vLLM's `reload_weights(weights_path=…)` does
    model.load_weights(vllm.loader(extra).get_all_weights(config, model))
    assert holds(model, 3)


def test_parameters_without_values_are_an_error_unless_a_quantization_fills_them(vllm: VLLM, tmp_path: Path) -> None:
    directory = saved(tmp_path / "model", 1)
    save_file({name: tensor for name, tensor in tensors(1).items() if name != "norm"}, directory / "model.safetensors")
    config = ModelConfig(str(directory))
    with pytest.raises(ModuleMismatch, match="no values for `norm`"):
        vllm.loader().load_weights(Model(LAYERS), config)
    config.quantization = "fp8"
    vllm.loader().load_weights(Model(LAYERS), config)
    save_file({"norm": torch.ones(4)}, directory / "model.safetensors")
    config.quantization = None
    vllm.loader().load_weights(Model(LAYERS), config)  # vLLM leaves these to the layers' quant_method


def test_weights_of_a_second_model_are_refused_and_not_left_out(vllm: VLLM, tmp_path: Path) -> None:
    model = Model(LAYERS)
    model.secondary_weights = ["speech"]
    with pytest.raises(BadConfig, match="Model takes weights from a second model"):
        vllm.loader().load_weights(model, ModelConfig(str(saved(tmp_path / "model", 1))))


@pytest.mark.parametrize("far", [(), (2,)], ids=["on one node", "on two"])
@pytest.mark.parametrize("extra", [{}, {"together": False}], ids=["together", "each"])
def test_workers_load_the_same_at_the_same_time(
    vllm: VLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, far: tuple[int, ...], extra: dict[str, bool]
) -> None:
    uri = saved(tmp_path / "origin", 1).as_uri()
    config = without_weights(tmp_path / "model")
    asked: list[modelcache.NodeGroup | None] = []

    def seen(*given: Any, **arguments: Any) -> Any:
        asked.append(arguments["group"])
        return stream_opened(*given, **arguments)

    monkeypatch.setattr(vllm.ours, "stream_opened", seen)
    vllm.world.says = lambda rank, said: ("elsewhere", said[1]) if rank in far and isinstance(said, tuple) else said
    models = [Model(LAYERS) for _ in range(3)]
    assert vllm.world.run(3, lambda rank: vllm.loader({"uri": uri, **extra}).load_weights(models[rank], config)) == [None] * 3
    assert all(holds(model, 1) for model in models)
    groups = {tuple(group.ranks or ()) for group in asked if group is not None}
    assert groups == (set() if extra else {(0, 1), (2,)} if far else {(0, 1, 2)})
    assert len({group.name for group in asked if group is not None}) == len(groups)


def test_workers_with_different_versions_do_not_start(vllm: VLLM, tmp_path: Path) -> None:
    uri = saved(tmp_path / "origin", 1).as_uri()
    config = without_weights(tmp_path / "model")
    vllm.world.says = lambda rank, said: "0" * 64 if rank == 1 and isinstance(said, str) else said
    models = [Model(LAYERS) for _ in range(2)]
    errors = vllm.world.run(2, lambda rank: vllm.loader({"uri": uri}).load_weights(models[rank], config))
    assert [type(error) for error in errors] == [SourceChanged, SourceChanged]
    assert {errors[0].got, errors[1].expected} == {f"sha256:{'0' * 64}", errors[0].expected}


def test_a_draft_model_asks_nobody(vllm: VLLM, tmp_path: Path) -> None:
    draft = ModelConfig(str(saved(tmp_path / "draft", 2)), runner_type="draft")
    models = [Model(LAYERS) for _ in range(2)]

    def one_of_two(rank: int) -> None:
        if rank == 1:  # as on the last stage of a pipeline alone
            vllm.loader().load_weights(models[rank], draft)

    assert vllm.world.run(2, one_of_two) == [None, None]
    assert holds(models[1], 2)


def test_a_config_of_another_version_is_told(vllm: VLLM, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = {"uri": saved(tmp_path / "origin", 1).as_uri()}
    with caplog.at_level(logging.INFO):
        vllm.loader(extra).load_weights(Model(LAYERS), without_weights(tmp_path / "same"))
        assert "another version" not in caplog.text
        vllm.loader(extra).load_weights(Model(LAYERS), without_weights(tmp_path / "other", '{"rope_theta": 1}'))
    assert "another version" in caplog.text


def test_a_load_that_breaks_off_lets_go_of_the_snapshot(vllm: VLLM, tmp_path: Path) -> None:
    uri = saved(tmp_path / "origin", 1).as_uri()
    model = Model(())  # has none of the layers
    with pytest.raises(KeyError):
        vllm.loader({"uri": uri}).load_weights(model, without_weights(tmp_path / "model"))
    with ModelCache() as cache:
        try:
            cache.evict(uri)
        except ModelCacheError as error:
            raise AssertionError("it is still held") from error
