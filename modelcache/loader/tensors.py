"""Tensors over memory that holds a file's bytes. The one place of the loader that knows torch."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping

import torch

from modelcache.errors import BadCheckpoint
from modelcache.loader.header import Dtype, TensorEntry
from modelcache.loader.memory import Memory

MAX_NUMBER = 2**63 - 1
"""Dimensions and strides of torch have 64 bits with a sign."""
TORCH_DTYPES: Mapping[Dtype, torch.dtype] = {
    Dtype.BOOL: torch.bool,
    Dtype.F4: torch.float4_e2m1fn_x2,
    Dtype.U8: torch.uint8,
    Dtype.I8: torch.int8,
    Dtype.F8_E5M2: torch.float8_e5m2,
    Dtype.F8_E4M3: torch.float8_e4m3fn,
    Dtype.F8_E8M0: torch.float8_e8m0fnu,
    Dtype.F8_E4M3FNUZ: torch.float8_e4m3fnuz,
    Dtype.F8_E5M2FNUZ: torch.float8_e5m2fnuz,
    Dtype.I16: torch.int16,
    Dtype.U16: torch.uint16,
    Dtype.F16: torch.float16,
    Dtype.BF16: torch.bfloat16,
    Dtype.I32: torch.int32,
    Dtype.U32: torch.uint32,
    Dtype.F32: torch.float32,
    Dtype.C64: torch.complex64,
    Dtype.F64: torch.float64,
    Dtype.I64: torch.int64,
    Dtype.U64: torch.uint64,
}
"""torch has none for the two 6-bit formats; the `safetensors` package gives no tensors of them either."""


def tensor_in(memory: Memory, offset: int, entry: TensorEntry, address: str) -> torch.Tensor:
    """The tensor whose bytes begin at `offset` of `memory`: a view with a storage of its own, which keeps the memory alive.

    Only one whose bytes don't lie on a multiple of its element's size is copied.

    Raises:
        BadCheckpoint: torch has no such dtype or dimensions, or packs two elements into a byte where a row has an odd number.
    """
    dtype, shape = torch_form(entry, address)
    if entry.span.size_bytes == 0:
        return torch.empty(shape, dtype=dtype, device="cpu")
    count = entry.span.size_bytes // dtype.itemsize
    if _address(memory, offset) % dtype.itemsize:
        raw = torch.frombuffer(memory, dtype=torch.uint8, count=entry.span.size_bytes, offset=offset)
        return raw.clone().view(dtype).view(shape)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(shape)


def empty_tensor(entry: TensorEntry, address: str) -> torch.Tensor:
    """A tensor of no bytes. Raises BadCheckpoint as `tensor_in`."""
    dtype, shape = torch_form(entry, address)
    return torch.empty(shape, dtype=dtype, device="cpu")


def torch_form(entry: TensorEntry, address: str) -> tuple[torch.dtype, tuple[int, ...]]:
    """The dtype and shape of the tensor that an entry becomes. Raises BadCheckpoint as `tensor_in`."""
    dtype = TORCH_DTYPES.get(entry.dtype)
    if dtype is None:
        raise BadCheckpoint(f"torch has no dtype for tensor `{entry.name}`", address=address, got=entry.dtype.label)
    if max(entry.shape, default=0) > MAX_NUMBER or math.prod(max(each, 1) for each in entry.shape[1:]) > MAX_NUMBER:  # one of no bytes
        raise BadCheckpoint(f"torch has no tensor of such a shape as `{entry.name}`", address=address, got=str(list(entry.shape)))
    if entry.dtype is not Dtype.F4:
        return dtype, entry.shape
    if not entry.shape or entry.shape[-1] % 2:
        raise BadCheckpoint(f"a row of tensor `{entry.name}` ends within a byte", address=address, got=str(list(entry.shape)))
    return dtype, (*entry.shape[:-1], entry.shape[-1] // 2)


def _address(memory: Memory, offset: int) -> int:
    return ctypes.addressof(memory) + offset


def is_number(dtype: torch.dtype) -> bool:
    """Whether an element is one floating-point number, which can be cast: torch's 4-bit elements are two."""
    return bool(dtype.is_floating_point) and dtype is not torch.float4_e2m1fn_x2
