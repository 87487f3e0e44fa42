"""The part of vLLM that a load format meets (0.32), for tests without an engine: registration, configs, and models that take weights."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

NAMES = ("vllm", "vllm.config", "vllm.distributed", "vllm.logger", "vllm.model_executor", "vllm.model_executor.model_loader")
OURS = "modelcache.integrations.vllm"


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


@dataclass
class VLLM:
    """What a test sees and sets.

    Attributes:
        formats: what was registered.
        others: digests that the other workers bring to an exchange.
        target: the model that the engine was started with.
    """

    ours: ModuleType
    formats: dict[str, Any]
    others: list[str]
    target: ModelConfig

    def loader(self, extra: Any = None) -> Any:
        """As `vllm.model_executor.model_loader.get_model_loader` makes one."""
        return self.formats["modelcache"](LoadConfig({} if extra is None else extra))


@contextmanager
def stand_in() -> Iterator[VLLM]:
    """modelcache's integration over modules that answer to vLLM's names."""
    formats: dict[str, Any] = {}
    others: list[str] = []
    target = ModelConfig("")

    def register_model_loader(name: str) -> Any:
        return lambda loader: formats.setdefault(name, loader)

    def all_gather_object(found: list[str], mine: str, group: str) -> None:
        assert group == "gloo"
        found[:] = [mine, *others]

    modules = {name: ModuleType(name) for name in NAMES}
    found: dict[str, dict[str, Any]] = {
        "vllm.config": {"get_current_vllm_config": lambda: SimpleNamespace(model_config=target)},
        "vllm.distributed": {"get_world_group": lambda: SimpleNamespace(world_size=1 + len(others), cpu_group="gloo")},
        "vllm.logger": {"init_logger": logging.getLogger},
        "vllm.model_executor.model_loader": {"BaseModelLoader": BaseModelLoader, "register_model_loader": register_model_loader},
    }
    for name, parts in found.items():
        vars(modules[name]).update(parts)
    before = {name: sys.modules.pop(name, None) for name in (*NAMES, OURS)}
    sys.modules.update(modules)
    exchange = torch.distributed.all_gather_object
    torch.distributed.all_gather_object = all_gather_object
    try:
        ours = importlib.import_module(OURS)
        ours.register()
        yield VLLM(ours, formats, others, target)
    finally:
        torch.distributed.all_gather_object = exchange
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
