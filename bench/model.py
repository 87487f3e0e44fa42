"""The model that the benches move: real safetensors headers, bytes that don't compress, the same ones on every machine."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from modelcache.units import MIB

HEADER_BYTES = 16 << 10
"""All of a file before its data: the 8 bytes of the length, the JSON, and spaces (safetensors README, Format)."""
ROW_BYTES = 8 << 10
TENSOR_BYTES = 32 * MIB


def make_model(directory: Path, size_bytes: int, files: int) -> None:
    """Write a model of exactly `size_bytes` in `files` safetensors files of equal size, unless it is already there."""
    share, rest = divmod(size_bytes, files)
    names = [f"model-{number:05d}-of-{files:05d}.safetensors" for number in range(1, files + 1)]
    sizes = [share + (rest if number == files - 1 else 0) for number in range(files)]
    if directory.is_dir() and {path.name: path.stat().st_size for path in directory.iterdir()} == dict(zip(names, sizes, strict=True)):
        return
    new = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name, file_bytes in zip(names, sizes, strict=True):
        _write(new / name, file_bytes)
    shutil.rmtree(directory, ignore_errors=True)
    new.rename(directory)


def make_small_files(directory: Path, files: int, file_bytes: int) -> None:
    """Write `files` files of `file_bytes` each, no two alike, unless they are already there."""
    if directory.is_dir() and sum(1 for _ in directory.iterdir()) == files:
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    bytes_of = random.Random(files)
    for number in range(files):
        (directory / f"part-{number:05d}.bin").write_bytes(bytes_of.randbytes(file_bytes))


def _write(path: Path, size_bytes: int) -> None:
    bytes_of = random.Random(path.name)
    left = size_bytes - HEADER_BYTES
    with path.open("wb") as file:
        file.write(_header(left))
        while left:
            count = min(left, 4 * MIB)
            file.write(bytes_of.randbytes(count))
            left -= count


def _header(data_bytes: int) -> bytes:
    """Tensors of BF16 rows, as large as a transformer's, and what is left over as bytes."""
    assert data_bytes >= 0, f"a file is larger than its header of {HEADER_BYTES} bytes"
    tensors: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    while data_bytes - start >= ROW_BYTES:
        rows = min(TENSOR_BYTES, data_bytes - start) // ROW_BYTES
        stop = start + rows * ROW_BYTES
        name = f"model.layers.{len(tensors) - 1}.weight"
        tensors[name] = {"dtype": "BF16", "shape": [rows, ROW_BYTES // 2], "data_offsets": [start, stop]}
        start = stop
    if start < data_bytes:
        tensors["model.rest"] = {"dtype": "U8", "shape": [data_bytes - start], "data_offsets": [start, data_bytes]}
    text = json.dumps(tensors, separators=(",", ":")).encode()
    room = HEADER_BYTES - 8
    assert len(text) <= room, f"the header of {data_bytes} bytes of tensors takes {len(text)} bytes, and {room} are there"
    return room.to_bytes(8, "little") + text.ljust(room)


def make_llama(directory: Path, size_bytes: int, shards: int, *, pickled: bool) -> None:
    """Write a checkpoint with a Llama's tensors in bf16, about `size_bytes` in `shards` safetensors files of equal size, unless it is
    there; `pickled`: the same tensors by `torch.save` beside each."""
    import torch
    from safetensors.torch import load_file, save_file

    paths = [directory / f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    if not all(path.is_file() for path in paths):
        directory.mkdir(parents=True, exist_ok=True)
        source = torch.Generator().manual_seed(size_bytes)
        for number, path in enumerate(paths):
            new = path.with_suffix(".new")
            save_file(_shard(number, size_bytes // shards, source), new)
            new.rename(path)
    for path in paths if pickled else []:
        if not path.with_suffix(".pt").is_file():
            new = path.with_suffix(".new")
            torch.save(load_file(path), new)
            new.rename(path.with_suffix(".pt"))


def _shard(number: int, size_bytes: int, source: Any) -> dict[str, Any]:
    """Layers of a Llama (hidden size 4096, 8 key-value heads of 128) until the size is reached; smaller ones for small sizes."""
    import torch

    hidden = 4096 if size_bytes >= 256 * MIB else 256
    wide = hidden * 11 // 4
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 4, hidden),
        "self_attn.v_proj": (hidden // 4, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    found: dict[str, Any] = {}
    left, layer = size_bytes, 0
    while left > 0:
        for name, shape in shapes.items():
            rows = min(shape[0], max(1, left // 2 // (shape[1] if len(shape) == 2 else 1)))
            tensor = torch.randint(-(2**15), 2**15, (rows, *shape[1:]), dtype=torch.int16, generator=source).view(torch.bfloat16)
            found[f"model.layers.{number}.{layer}.{name}.weight"] = tensor
            left -= tensor.nbytes
            if left <= 0:
                break
        layer += 1
    return found
