"""Tensors by URI: fetched, verified, loaded; and looked into without fetching."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import modelcache
from modelcache.cli import progress_view
from modelcache.cli.main import main
from modelcache.config import Config
from modelcache.errors import BadCheckpoint, NotCached, NotFound
from modelcache.inspecting import FIRST_BYTES, inspect
from modelcache.loader.checkpoint import NO_FILES_HINT
from modelcache.testing.servers import Nginx
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import MIB


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """So many that the header is longer than what is read of a file at once."""
    return {f"layers.{number:04}.weight": torch.full((64,), float(number)) for number in range(1000)} | {"large": torch.ones(MIB)}


@pytest.fixture
def served(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    root = tmp_path / "served"
    root.mkdir()
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    return root


def test_a_uri_is_fetched_once_and_loaded(tmp_path: Path, served: Path, tensors: dict[str, torch.Tensor]) -> None:
    with Nginx(served) as server, modelcache.ModelCache(config=Config.load({}, root=tmp_path / "root", limits=NO_LIMITS)) as cache:
        uri = f"{server.endpoint}/model.safetensors"
        loaded = modelcache.load(uri, cache=cache)
        assert list(loaded) == [entry.name for _, entry in modelcache.open_checkpoint(uri, cache=cache).place.values()]
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
        server.requests()
        assert torch.equal(modelcache.load(uri, cache=cache, names=["large"])["large"], tensors["large"])
        assert server.requests() == []
        [info] = cache.list()
        assert info.leases == ()  # held while it is read, and not longer
        cache.evict(uri)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_model_is_looked_into_without_being_fetched(tmp_path: Path, served: Path, tensors: dict[str, torch.Tensor]) -> None:
    with Nginx(served) as server, modelcache.ModelCache(config=Config.load({}, root=tmp_path / "root", limits=NO_LIMITS)) as cache:
        uri = f"{server.endpoint}/model.safetensors"
        found = inspect(cache, uri)
        [(path, header)] = found.headers
        assert (path, found.here, header.metadata) == ("model.safetensors", False, {"format": "pt"})
        assert {entry.name: entry.shape for entry in header.tensors} == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        assert FIRST_BYTES < header.size_bytes == found.read_bytes
        got_bytes = sum(each.body_bytes for each in server.requests() if each.method == "GET")
        assert got_bytes == found.read_bytes + 1  # which tells the listing that ranges are served
        assert cache.list() == []
        cache.ensure(uri)
        here = inspect(cache, uri)
        assert (here.here, here.read_bytes, here.headers[0][1]) == (True, 0, header)
        with pytest.raises(NotCached):
            inspect(cache, "0123456789abcdef")


def test_every_safetensors_file_is_shown_the_same_here_and_at_the_origin(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Also those that no load would take together: in directories below, and with tensors of one name."""
    model = tmp_path / "model"
    for name in ("b", "a", "original/consolidated"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, model / f"{name}.safetensors")
    with modelcache.ModelCache(config=Config.load({}, root=tmp_path / "root", limits=NO_LIMITS)) as cache:
        there = inspect(cache, str(model))
        assert [path for path, _ in there.headers] == ["a.safetensors", "b.safetensors", "original/consolidated.safetensors"]
        cache.ensure(str(model))
        here = inspect(cache, str(model))
        assert (here.here, here.uri, here.revision, here.headers) == (True, there.uri, there.revision, there.headers)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("no tensors")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.safetensors").write_bytes(b"12345")
    with modelcache.ModelCache(config=Config.load({}, root=tmp_path / "root", limits=NO_LIMITS)) as cache:
        with pytest.raises(NotFound, match="no safetensors files") as caught:
            inspect(cache, f"file://{tmp_path}/readme.txt")
        assert caught.value.hint == NO_FILES_HINT
        with pytest.raises(BadCheckpoint, match="too short"):
            inspect(cache, f"file://{tmp_path}/bad")
        with pytest.raises(BadCheckpoint, match="too short"):
            modelcache.load(f"file://{tmp_path}/bad", cache=cache)


def test_the_commands(tmp_path: Path, served: Path, tensors: dict[str, torch.Tensor], capfd: pytest.CaptureFixture[str]) -> None:
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    arguments = ["--root", str(tmp_path / "root"), "--json"]
    for name in (f"file://{served}", str(served)):
        assert main(["inspect", *arguments, name]) == 0
        document = json.loads(capfd.readouterr().out)
        assert document["here"] is False
        assert {each["name"] for each in document["files"][0]["tensors"]} == set(tensors)
    assert main(["load", *arguments, f"file://{served}"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["tensors"], document["tensor_bytes"]) == (len(tensors), size_bytes)
    assert sum(document["read_bytes"].values()) >= size_bytes
    phases = [document[name] for name in ("opened_s", "waited_s", "placed_s", "consumed_s")]
    assert document["seconds"] == pytest.approx(sum(phases))
    assert document["rate_bytes_per_s"] == pytest.approx(size_bytes / document["seconds"])
    assert main(["load", "--json", str(served / "model.safetensors")]) == 0
    capfd.readouterr()
    assert main(["load", "--time", str(served / "model.safetensors")]) == 0
    assert "waiting for bytes" in capfd.readouterr().out


def test_load_shows_how_far_it_is(
    served: Path, tensors: dict[str, torch.Tensor], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_view, "EVENT_INTERVAL_S", 0.0)
    monkeypatch.setattr(progress_view, "LINE_INTERVAL_S", 0.0)
    file = str(served / "model.safetensors")
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    assert main(["load", "--json", file]) == 0
    looks = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {(look["event"], look["phase"]) for look in looks} == {("progress", "loading")}
    assert (looks[0]["bytes_done"], looks[0]["bytes_total"]) == (0, 0)
    assert (looks[-1]["bytes_done"], looks[-1]["bytes_total"]) == (size_bytes, size_bytes)
    assert main(["load", file]) == 0
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == f"{file}: loading"
    assert lines[-1].startswith(f"{file}: loading 100%, ")
    assert main(["load", "--quiet", file]) == 0
    assert capfd.readouterr().err == ""
