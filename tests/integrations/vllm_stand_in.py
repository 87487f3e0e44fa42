"""The part of vLLM that a load format meets (0.32), for tests without an engine: registration, configs, and models that take weights."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

NAMES = ("vllm", "vllm.config", "vllm.distributed", "vllm.logger", "vllm.model_executor", "vllm.model_executor.model_loader")
OURS = ("modelcache.integrations.vllm", "modelcache.integrations.vllm_workers")


@dataclass
class LoadConfig:
    """`vllm.config.LoadConfig`."""

    model_loader_extra_config: Any = field(default_factory=dict)


@dataclass
class ModelConfig:
    """`vllm.config.ModelConfig`."""

    model: str
    runner_type: str = "generate"
    quantization: str | None = None


class BaseModelLoader:
    """`vllm.model_executor.model_loader.BaseModelLoader`."""

    def __init__(self, load_config: LoadConfig) -> None:
        self.load_config = load_config


class Model(nn.Module):  # type: ignore[misc]  # torch is not looked into
    """A model as vLLM builds one: on its device, by its own names, filled by `load_weights`. Its linear layers know of quantization."""

    def __init__(self, names: Sequence[str], size: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(size, size, bias=False) for name in names})
        self.norm = nn.Parameter(torch.empty(size))
        for layer in self.layers.values():
            layer.quant_method = object()
        self.order: list[str] = []

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        mine = dict(self.named_parameters())
        for name, tensor in weights:
            self.order.append(name)
            assert tensor.device == torch.device("cpu")  # and not vLLM's default device
            mine[name].data.copy_(tensor)
        return set(self.order)


class World:
    """Workers that are threads: what `get_world_group` and `all_gather_object` are to each. Outside of `run` there is one."""

    def __init__(self) -> None:
        self.size = 1
        self.says: Callable[[int, Any], Any] = lambda rank, said: said
        self._here = threading.local()
        self._said: dict[int, Any] = {}
        self._all = threading.Barrier(1)

    def run(self, size: int, work: Callable[[int], Any]) -> list[Any]:
        """What each worker returns, or the error that it raises."""
        self.size, self._all = size, threading.Barrier(size, timeout=100)

        def one(rank: int) -> Any:
            self._here.rank = rank
            try:
                return work(rank)
            except Exception as error:
                return error

        try:
            with ThreadPoolExecutor(size) as pool:
                return list(pool.map(one, range(size)))
        finally:
            self.size = 1

    def group(self) -> SimpleNamespace:
        return SimpleNamespace(world_size=self.size, rank_in_group=getattr(self._here, "rank", 0), cpu_group="gloo")

    def all_gather_object(self, found: list[Any], mine: Any, group: str) -> None:
        assert group == "gloo"
        rank = self._here.rank
        self._said[rank] = self.says(rank, mine)
        self._all.wait()
        found[:] = [self._said[each] for each in range(self.size)]
        self._all.wait()


@dataclass
class VLLM:
    """What a test sees and sets.

    Attributes:
        formats: what was registered.
        target: the model that the engine was started with.
    """

    ours: ModuleType
    formats: dict[str, Any]
    world: World
    target: ModelConfig

    def loader(self, extra: Any = None) -> Any:
        """As `vllm.model_executor.model_loader.get_model_loader` makes one."""
        return self.formats["modelcache"](LoadConfig({} if extra is None else extra))


@contextmanager
def stand_in() -> Iterator[VLLM]:
    """modelcache's integration over modules that answer to vLLM's names."""
    formats: dict[str, Any] = {}
    world = World()
    target = ModelConfig("")

    def register_model_loader(name: str) -> Any:
        return lambda loader: formats.setdefault(name, loader)

    modules = {name: ModuleType(name) for name in NAMES}
    found: dict[str, dict[str, Any]] = {
        "vllm.config": {"get_current_vllm_config": lambda: SimpleNamespace(model_config=target)},
        "vllm.distributed": {"get_world_group": world.group},
        "vllm.logger": {"init_logger": logging.getLogger},
        "vllm.model_executor.model_loader": {"BaseModelLoader": BaseModelLoader, "register_model_loader": register_model_loader},
    }
    for name, parts in found.items():
        vars(modules[name]).update(parts)
    before = {name: sys.modules.pop(name, None) for name in (*NAMES, *OURS)}
    sys.modules.update(modules)
    exchange = torch.distributed.all_gather_object
    torch.distributed.all_gather_object = world.all_gather_object
    try:
        ours = importlib.import_module(OURS[0])
        ours.register()
        yield VLLM(ours, formats, world, target)
    finally:
        torch.distributed.all_gather_object = exchange
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
