"""Where tensors go, and in which order they come."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import modelcache
from modelcache.errors import NoSuchDevice, NoSuchTensor
from modelcache.loader import loading
from modelcache.loader.checkpoint import Order, open_checkpoint
from modelcache.loader.files import TensorFile, Way
from modelcache.loader.host import HostLanding, HostStaging
from modelcache.loader.placement import Placement
from modelcache.loader.plan import Extent
from modelcache.loader.report import LoadReport
from modelcache.units import MIB
from tests.fuzz.plans import SIZES, checkpoint_of, expect_sound


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_every_wanted_tensor_lies_in_one_extent_of_one_destination(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.lists(st.sampled_from(SIZES), min_size=1, max_size=12), min_size=1, max_size=3))
    checkpoint = checkpoint_of(sizes)
    names = data.draw(st.permutations(data.draw(st.lists(st.sampled_from(sorted(checkpoint.place)), unique=True))))
    far = set(data.draw(st.lists(st.sampled_from(sorted(checkpoint.place)))))
    orders: list[Order] = ["file", "given"]
    order = data.draw(st.sampled_from(orders))
    expect_sound(checkpoint, names, order, far.__contains__)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {f"layers.{number}.w": torch.full((MIB // 4,), float(number)) for number in range(6)}
    save_file(tensors | {"nothing": torch.empty(0, 3), "head": torch.ones(5)}, tmp_path / "model.safetensors")
    return tmp_path


def test_tensors_come_in_the_order_asked_for(model: Path) -> None:
    asked = ["layers.5.w", "nothing", "layers.[01].w", "head", "layers.3.w", "layers.*"]
    found = {name: tensor.clone() for name, tensor in modelcache.stream(model, names=asked, order="given")}
    assert list(found) == ["layers.5.w", "nothing", "layers.0.w", "layers.1.w", "head", "layers.3.w", "layers.2.w", "layers.4.w"]
    assert all(tensor.eq(float(name[7])).all() for name, tensor in found.items() if name.startswith("layers"))
    assert list(modelcache.load(model, names=asked)) == list(open_checkpoint(model).place)
    with pytest.raises(NoSuchTensor):
        modelcache.load(model, names=["head", "tail"], order="given")


def test_a_name_wins_then_the_longest_pattern_and_the_rest_stays_in_host_memory() -> None:
    place = Placement({"layers.*": "cuda:0", "layers.1*": "cuda:1", "layers.10.w": "meta", "absent": "cuda:7"})
    devices = [str(place.device_of(name)) for name in ("layers.0.w", "layers.1.w", "layers.10.w", "layers.11.w", "head")]
    assert devices == ["cuda:0", "cuda:1", "meta", "cuda:1", "cpu"]
    assert str(Placement("cuda:3").device_of("any")) == "cuda:3"
    assert str(Placement(None).device_of("any")) == "cpu"
    with pytest.raises(NoSuchDevice):
        Placement({"a": "no such device"})


class Recorded(HostStaging):
    """Notes what a load asks of the staging of a device."""

    def __init__(self, device: torch.device, said: list[str]) -> None:
        super().__init__(loading.memory, device)
        self._said = said

    def land(self, extent: Extent, file: TensorFile) -> HostLanding:
        self._said.append("land")
        return super().land(extent, file)

    def close(self) -> None:
        self._said.append("close")


def test_each_device_has_one_staging_that_is_closed_when_reading_has_ended(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, list[str]] = {}
    monkeypatch.setattr(loading, "open_staging", lambda device, *_: Recorded(device, said.setdefault(str(device), [])))
    report = LoadReport()
    loaded = modelcache.load(model, device={"layers.[0-2].w": "meta", "head": "cpu"}, report=report)
    assert {name for name, tensor in loaded.items() if tensor.is_meta} == {"layers.0.w", "layers.1.w", "layers.2.w"}
    assert {device: calls[-1] for device, calls in said.items()} == {"meta": "close", "cpu": "close"}
    assert said["meta"] == ["land", "close"]
    assert set(report.read_bytes) <= set(Way)
