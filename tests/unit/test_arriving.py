"""Tensors of a model while it arrives: the right bits, before the last byte is served, from bytes that are fetched once; and what was
handed out too early is told. Over an origin that is a dict and a store on a disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save

import modelcache
from modelcache.abc.source import Source
from modelcache.config import Config
from modelcache.loader.report import LoadReport
from modelcache.testing.fetching import small_chunks
from modelcache.testing.memory_source import MemorySource

URI = "s3://models/llama"
CHUNK = 4096
DEADLINE_S = 30.0


@pytest.fixture(autouse=True)
def chunk_bytes() -> Iterator[int]:
    with small_chunks(CHUNK) as size_bytes:
        yield size_bytes


@contextmanager
def cache_of(root: Path, source: MemorySource) -> Iterator[modelcache.ModelCache]:
    """A cache whose every URI is of this source."""

    @contextmanager
    def sources(*asked: object) -> Iterator[list[Source]]:
        yield [source]

    with modelcache.ModelCache(config=Config.load({}, root=root)) as cache, patch.object(cache._registry, "sources", sources):
        yield cache


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy()) if tensor.numel() else b""


def tensors_of(sizes: list[int], *, seed: int = 0) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {
        f"layers.{seed}.{number}": torch.randint(-(2**15), 2**15, (size,), dtype=torch.int16, generator=source)
        for number, size in enumerate(sizes)
    }


def shards_of(*shards: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    files = {f"model-{number:05d}-of-{len(shards):05d}.safetensors": save(dict(shard)) for number, shard in enumerate(shards, 1)}
    return {"config.json": b"{}", **files}


def check(loaded: Mapping[str, torch.Tensor], *shards: Mapping[str, torch.Tensor]) -> None:
    wanted = {name: tensor for shard in shards for name, tensor in shard.items()}
    assert set(loaded) == set(wanted)
    for name, tensor in wanted.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert raw(loaded[name]) == raw(tensor)


def test_what_is_not_here_is_loaded_as_it_arrives(tmp_path: Path) -> None:
    one, two = tensors_of([10 * CHUNK, 5, 3 * CHUNK], seed=1), tensors_of([7 * CHUNK, 0, 9], seed=2)
    source = MemorySource(shards_of(one, two))
    report = LoadReport()
    with cache_of(tmp_path / "root", source) as cache:
        check(modelcache.load(URI, cache=cache, report=report), one, two)
        [info] = cache.list()
        assert info.leases == ()
