"""A model of two files that arrives from an origin that is a dict, in a store on a disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save

import modelcache
from modelcache.abc.ingest import Route
from modelcache.abc.source import Source
from modelcache.config import Config
from modelcache.testing.fetching import SMALL_CHUNK_BYTES
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.store_fixtures import NO_LIMITS

URI = "s3://models/llama"
WITH_SECRET = "https://who:hunter2@models.example/llama"
CHUNK = SMALL_CHUNK_BYTES
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Tensors = Mapping[str, torch.Tensor]
THREADS = ("arrival", "load", "ensure")


@contextmanager
def cache_of(root: Path, source: MemorySource, route: Route | None = None) -> Iterator[modelcache.ModelCache]:
    """A cache whose every URI is of this source; nothing of a load is left when the block ends."""

    @contextmanager
    def sources(*asked: object) -> Iterator[list[Source]]:
        yield [source]

    with (
        modelcache.ModelCache(config=Config.load({}, root=root, limits=NO_LIMITS, write_route=route)) as cache,
        patch.object(cache._registry, "sources", sources),
    ):
        yield cache
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith(THREADS)] == []
        assert all(info.leases == () for info in cache.list())
    assert source.open_bodies == 0


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy()) if tensor.numel() else b""


def tensors_of(sizes: Sequence[int], *, seed: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    random = [torch.randint(-(2**15), 2**15, (size,), dtype=torch.int16, generator=source) for size in sizes]
    return {f"layers.{seed}.{number}": tensor for number, tensor in enumerate(random)}


def shards_of(*shards: Tensors) -> dict[str, bytes]:
    files = {f"model-{number:05d}-of-{len(shards):05d}.safetensors": save(dict(shard)) for number, shard in enumerate(shards, 1)}
    return {"config.json": b"{}", **files}


def check(loaded: Tensors, *shards: Tensors) -> None:
    wanted = {name: tensor for shard in shards for name, tensor in shard.items()}
    assert set(loaded) == set(wanted)
    for name, tensor in wanted.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert raw(loaded[name]) == raw(tensor)


A, B = tensors_of([10 * CHUNK, 5, 3 * CHUNK], seed=1), tensors_of([7 * CHUNK, 0, 9], seed=2)


@contextmanager
def in_background(do: Callable[[], dict[str, torch.Tensor]]) -> Iterator[Future[dict[str, torch.Tensor]]]:
    with ThreadPoolExecutor(1, thread_name_prefix="caller") as thread:
        yield thread.submit(do)
