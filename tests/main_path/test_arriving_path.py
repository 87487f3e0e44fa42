"""Tensors of a model that arrives from a real bucket: bit for bit those of the safetensors package, each byte served once."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import modelcache
from modelcache.config import Config
from modelcache.errors import NoSpace
from modelcache.loader.report import LoadReport
from modelcache.testing.s3_sources import options_of
from modelcache.testing.servers import Nginx, NginxOptions, SeaweedFS
from modelcache.testing.small_filesystem import Kind
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import MIB
from tests.conftest import SmallDisk

SHARDS = 2
ROWS = (3000, 1, 2500, 0, 1111)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """26 MiB in two shards with an index; tensors lie across chunks, and one is of no bytes."""
    directory = tmp_path / "model"
    directory.mkdir()
    source = torch.Generator().manual_seed(7)
    names = [f"model-{number:05d}-of-{SHARDS:05d}.safetensors" for number in range(1, SHARDS + 1)]
    weight_map: dict[str, str] = {}
    for number, name in enumerate(names):
        raw = [torch.randint(-(2**15), 2**15, (rows, 1024), dtype=torch.int16, generator=source) for rows in ROWS]
        tensors = {f"layers.{number}.{each}": tensor.view(torch.bfloat16) for each, tensor in enumerate(raw)}
        save_file(tensors, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text("{}")
    return directory


@contextmanager
def served(seaweedfs: SeaweedFS, bucket: str, model: Path, root: Path) -> Iterator[tuple[str, modelcache.ModelCache, Nginx]]:
    """The model in a bucket of its own, counted by a proxy before it."""
    prefix = secrets.token_hex(6)
    seaweedfs.put_tree(bucket, prefix, model)
    with Nginx(model, NginxOptions(upstream=seaweedfs.endpoint)) as front:
        s3 = replace(options_of(seaweedfs), endpoint=front.endpoint)
        with modelcache.ModelCache(config=Config(root=root, limits=NO_LIMITS, s3=s3)) as cache:
            yield f"s3://{bucket}/{prefix}", cache, front


def expected(model: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(model.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def check(loaded: dict[str, torch.Tensor], model: Path) -> None:
    wanted = expected(model)
    assert set(loaded) == set(wanted)
    assert all((loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape) for name, tensor in wanted.items())
    assert all(torch.equal(loaded[name].view(torch.int16), tensor.view(torch.int16)) for name, tensor in wanted.items())


def body_bytes(front: Nginx, model: Path) -> dict[str, int]:
    """What was sent of each of the model's files."""
    sent: Counter[str] = Counter()
    for request in front.requests():
        name = request.target.partition("?")[0].rpartition("/")[2]
        if request.method == "GET" and (model / name).is_file():
            sent[name] += request.body_bytes
    return dict(sent)


@pytest.mark.parametrize("verified_only", [False, True])
def test_each_byte_is_served_once_and_the_next_load_is_a_hit(
    tmp_path: Path, seaweedfs: SeaweedFS, bucket: str, model: Path, verified_only: bool
) -> None:
    with served(seaweedfs, bucket, model, tmp_path / "root") as (uri, cache, front):
        report = LoadReport()
        check(modelcache.load(uri, cache=cache, report=report, verified_only=verified_only), model)
        assert body_bytes(front, model) == {path.name: path.stat().st_size for path in model.iterdir()}
        assert report.tensor_bytes == sum(tensor.nbytes for tensor in expected(model).values())
        check(modelcache.load(uri, cache=cache), model)
        assert front.requests() == []
        assert cache.verify(uri).damages == ()
        [info] = cache.list()
        assert info.leases == ()


def test_a_module_is_filled_as_its_model_arrives(tmp_path: Path, seaweedfs: SeaweedFS, bucket: str, model: Path) -> None:
    module = torch.nn.Module()
    layers = [torch.nn.ParameterList(torch.empty(each, 1024, dtype=torch.bfloat16) for each in ROWS) for _ in range(SHARDS)]
    module.layers = torch.nn.ModuleList(layers)
    with served(seaweedfs, bucket, model, tmp_path / "root") as (uri, cache, front):
        modelcache.load_into(module, uri, cache=cache)
        assert body_bytes(front, model) == {path.name: path.stat().st_size for path in model.iterdir()}
    check({name: tensor.detach() for name, tensor in module.state_dict().items()}, model)


@pytest.mark.root
def test_a_store_without_direct_writes_and_one_without_room(
    small_disk: SmallDisk, tmp_path: Path, seaweedfs: SeaweedFS, bucket: str, model: Path
) -> None:
    with served(seaweedfs, bucket, model, small_disk(size_bytes=96 * MIB, kind=Kind.TMPFS) / "root") as (uri, cache, _):
        check(modelcache.load(uri, cache=cache), model)
    small = small_disk(size_bytes=24 * MIB)
    with served(seaweedfs, bucket, model, small / "root") as (uri, cache, _):
        with pytest.raises(NoSpace):
            modelcache.load(uri, cache=cache)
        assert cache.list() == []
        assert list((small / "root" / "ingest").iterdir()) == []
