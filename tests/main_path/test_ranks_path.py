"""Ranks and URIs: a model that isn't here is fetched once for a group, and a rank by itself takes its part as it arrives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import modelcache
from modelcache.config import Config
from modelcache.loader.files import Way
from modelcache.loader.report import LoadReport
from modelcache.testing.servers import Nginx
from modelcache.testing.store_fixtures import NO_LIMITS

PLAN: dict[str, int | None] = {"*.columns": 1, "*.rows": 0}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(8)
    names = [f"{layer}.{kind}" for layer in range(3) for kind in ("columns", "rows", "whole")]
    return {name: torch.randint(0, 2**15, (1024, 1024), dtype=torch.int16, generator=source) for name in names}


def part(name: str, tensor: torch.Tensor, rank: int) -> torch.Tensor:
    if name.endswith("whole"):
        return tensor
    return tensor.chunk(2, 0 if name.endswith("rows") else 1)[rank]


@pytest.mark.parametrize("group", [True, False])
def test_a_uri_that_is_not_here(tmp_path: Path, tensors: dict[str, torch.Tensor], group: bool) -> None:
    served = tmp_path / "served"
    served.mkdir()
    save_file(tensors, served / "model.safetensors")
    name = f"ranks-{tmp_path.name}-{id(tensors)}" if group else None
    with Nginx(served) as server, modelcache.ModelCache(config=Config.load({}, root=tmp_path / "root", limits=NO_LIMITS)) as cache:
        uri = f"{server.endpoint}/model.safetensors"
        reports = [LoadReport(), LoadReport()]

        def load(rank: int) -> dict[str, torch.Tensor]:
            return modelcache.load(uri, shard=(rank, 2, PLAN), group=name, report=reports[rank], cache=cache)

        with ThreadPoolExecutor(2) as ranks:
            found = list(ranks.map(load, range(2)))
        size_bytes = (served / "model.safetensors").stat().st_size
        fetched_bytes = sum(each.body_bytes for each in server.requests() if each.method == "GET" and each.body_bytes > 1)
        assert fetched_bytes == size_bytes
        assert [info.leases for info in cache.list()] == [()]
        for rank, loaded in enumerate(found):
            assert set(loaded) == set(tensors)
            assert all(torch.equal(loaded[each], part(each, tensor, rank)) for each, tensor in tensors.items())
    if group and not any(report.read_bytes[Way.MAPPED] for report in reports):  # it is mapped where it stayed in the page cache
        disk_bytes = sum(report.read_bytes.total() - report.read_bytes[Way.SHARED] for report in reports)
        assert disk_bytes <= 1.05 * size_bytes
