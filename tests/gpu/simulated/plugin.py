"""A pytest plugin for GPUs that are simulated: what torch would compute there in a kernel is computed on the host. README.md says more.

Loaded by `-p tests.gpu.simulated.plugin` alone (`make test-gpu-simulated`); no test and no other module imports it.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

FUNCTIONAL = (
    *("equal", "eq.Tensor", "eq.Scalar", "ne.Tensor", "any", "all", "sum", "sum.dim_IntList", "cat"),
    *("add.Tensor", "mul.Tensor", "div.Tensor", "reciprocal", "pow.Scalar", "pow.Tensor_Scalar", "pow.Tensor_Tensor"),
)
IN_PLACE = ("add_.Tensor", "mul_.Tensor")
INTO = ("arange.start_out",)
"""What is written into `out`."""

RUNTIME = "libcudart.so.13"

_registered = torch.library.Library("aten", "IMPL")  # for as long as the process lives


def pytest_configure() -> None:
    """Raises UsageError: torch doesn't run on the simulation."""
    if not _is_simulated():
        raise pytest.UsageError("this torch runs on no simulated GPU: `make test-gpu-simulated` makes one that does, GPUs need no plugin")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # that these take another's place is what they are for
        for name in FUNCTIONAL:
            _register(name, _functional(_operation(name)))
        for name in IN_PLACE:
            _register(name, _in_place(_operation(name)))
        for name in INTO:
            _register(name, _into(_operation(name)))
        _register("_to_copy", _to_copy)


def pytest_report_header() -> str:
    runtime = _runtime()
    runtime.simcuda_seed.restype = ctypes.c_ulong
    return f"simulated GPUs: SIMCUDA_SEED={runtime.simcuda_seed()}"


def _is_simulated() -> bool:
    try:
        return hasattr(_runtime(), "simcuda_seed")
    except OSError:
        return False


def _runtime() -> ctypes.CDLL:
    """The one that torch has loaded."""
    return ctypes.CDLL(RUNTIME)


def _operation(name: str) -> Callable[..., object]:
    packet, _, overload = name.partition(".")
    found: Callable[..., object] = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return found


def _register(name: str, call: Callable[..., object]) -> None:
    _registered.impl(name, call, "CUDA")


def _on_host(value: object) -> object:
    """What the stream brought before it is waited for, as by a kernel that is put there."""
    if isinstance(value, (list, tuple)):
        return [_on_host(each) for each in value]
    return value.cpu() if isinstance(value, torch.Tensor) and value.is_cuda else value


def _devices(values: Sequence[object]) -> Iterator[torch.device]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _devices(value)
        elif isinstance(value, torch.Tensor) and value.is_cuda:
            yield value.device


def _functional(operation: Callable[..., object]) -> Callable[..., object]:
    def call(*arguments: object, **named: object) -> object:
        device = next(_devices(arguments))
        found = operation(*map(_on_host, arguments), **named)
        return found.to(device) if isinstance(found, torch.Tensor) else found

    return call


def _in_place(operation: Callable[..., object]) -> Callable[..., object]:
    def call(target: torch.Tensor, *arguments: object, **named: object) -> torch.Tensor:
        return target.copy_(operation(_on_host(target), *map(_on_host, arguments), **named))

    return call


def _into(operation: Callable[..., object]) -> Callable[..., object]:
    def call(*arguments: object, out: torch.Tensor) -> torch.Tensor:
        found = operation(*map(_on_host, arguments), out=torch.empty(0, dtype=out.dtype))
        assert isinstance(found, torch.Tensor)
        return out.resize_(found.shape).copy_(found)

    return call


def _to_copy(
    source: torch.Tensor, *, dtype: torch.dtype | None = None, device: torch.device | None = None, non_blocking: bool = False, **_: object
) -> torch.Tensor:
    to = source.device if device is None else torch.device(device)
    if dtype is None or dtype == source.dtype:
        return torch.empty(source.shape, dtype=source.dtype, device=to).copy_(source, non_blocking=non_blocking)
    host = torch.empty(source.shape, dtype=source.dtype).copy_(source)
    return host.to(dtype).to(to)
