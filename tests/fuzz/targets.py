"""What is fuzzed: functions of any bytes that raise AssertionError (or anything else) where the loader is wrong."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch

import modelcache
from modelcache.errors import BadCheckpoint
from modelcache.loader.checkpoint import Order, open_checkpoint
from modelcache.loader.header import Dtype
from tests.fuzz.plans import SIZES, checkpoint_of, expect_sound
from tests.fuzz.verdicts import STRICTER, expect_like_the_package, file_of, tensor

T = TypeVar("T")
LABELS = (*(each.label for each in Dtype), "F128", "")
WITHOUT_TORCH = ("torch has no dtype", "torch has no tensor of such a shape", "ends within a byte")
"""Why a load may refuse a file whose header is accepted."""
ODD = (2**63, 2**64 - 1, 2**64, -1)
INDEX_REASONS = ("twice", "-0 is no whole number", "is no number", "nested too deeply", "digits")
"""Why an index may be refused that Python's own JSON reads as the right one."""


class Choices:
    """Bytes, taken one after the other; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def one(self, below: int = 256) -> int:
        """A number from 0."""
        value = self._data[self._at] if self._at < len(self._data) else 0
        self._at += 1
        return value % below

    def rest(self) -> bytes:
        """What wasn't taken."""
        return self._data[self._at :]


def file_from(data: bytes) -> bytes:
    """A safetensors file, or nearly one: the bytes themselves, those with a length before them, or a header that they describe."""
    choices = Choices(data)
    kind = choices.one(3)
    if kind == 0:
        return choices.rest()
    if kind == 1:
        behind = choices.one()
        return file_of(choices.rest(), bytes(behind))
    header: dict[str, Any] = {}
    at = 0
    for number in range(choices.one(5)):
        label = LABELS[choices.one(len(LABELS))]
        shape = [ODD[choices.one(len(ODD))] if choices.one(32) == 31 else choices.one(6) for _ in range(choices.one(4))]
        size_bytes = _size_bytes(label, shape)
        wrong = choices.one(16)
        start = at + (choices.one(5) - 2 if wrong == 15 else 0)
        stop = start + size_bytes + (choices.one(5) - 2 if wrong == 14 else 0)
        header[f"t{number if wrong != 13 else choices.one(3)}"] = tensor(label, shape, start, stop)
        at += size_bytes if 0 <= size_bytes < 10_000 else 0
    spaces, behind = choices.one(8), choices.one(16)
    return file_of(json.dumps(header).encode() + b" " * spaces, (choices.rest() + bytes(at))[: at + (behind == 15)])


def _size_bytes(label: str, shape: list[int]) -> int:
    bits = next((each.bits for each in Dtype if each.label == label), 8)
    for each in shape:
        bits *= each
    return bits // 8


def header(data: bytes) -> None:
    """The parser's verdict, and where it finds each tensor's bytes."""
    expect_like_the_package(file_from(data))


def file(data: bytes) -> None:
    """A whole load: `modelcache.load` beside `safetensors.torch.load_file`."""
    path = _directory() / "one.safetensors"
    path.unlink(missing_ok=True)  # tensors of the one before may be mapped still
    path.write_bytes(file_from(data))
    mine, refusal = _tried(lambda: modelcache.load(path))
    if mine is None:
        assert any(reason in refusal for reason in (*STRICTER, *WITHOUT_TORCH)) or not _is_read(path), refusal
        return
    theirs = safetensors.torch.load_file(path)
    assert mine.keys() == theirs.keys()
    for name, each in mine.items():
        assert (each.dtype, each.shape) == (theirs[name].dtype, theirs[name].shape)
        assert torch.equal(_raw(each), _raw(theirs[name]))


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)


def _is_read(path: Path) -> bool:
    """By the package."""
    try:
        safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, RuntimeError, ValueError):
        return False
    return True


def index(data: bytes) -> None:
    """An index beside two shards: accepted is one that says where each tensor of the shards that it names really is, and nothing else."""
    directory = _sharded()
    (directory / "model.safetensors.index.json").write_bytes(data)
    try:
        said = json.loads(data)["weight_map"]
        expected = {name: shard for name, shard in WEIGHT_MAP.items() if shard in said.values()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        said, expected = None, {}
    right = bool(expected) and said == expected
    found, refusal = _tried(lambda: open_checkpoint(directory))
    if found is None:
        assert not right or any(reason in refusal for reason in INDEX_REASONS), refusal
        return
    assert right, "accepted, and it doesn't say where the tensors are"
    assert {name: found.shards[number].path.name for name, (number, _) in found.place.items()} == expected


def _tried(load: Callable[[], T]) -> tuple[T | None, str]:
    try:
        return load(), ""
    except BadCheckpoint as error:
        return None, error.message


WEIGHT_MAP = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}


@cache
def _directory() -> Path:
    """Of this process, in memory."""
    made = tempfile.TemporaryDirectory(prefix="modelcache-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    _kept.append(made)  # removed at the end of the process
    return Path(made.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


@cache
def _sharded() -> Path:
    directory = _directory() / "sharded"
    directory.mkdir()
    for name in set(WEIGHT_MAP.values()):
        names = [each for each, place in WEIGHT_MAP.items() if place == name]
        entries = {each: tensor("U8", [1], number, number + 1) for number, each in enumerate(names)}
        (directory / name).write_bytes(file_of(entries, bytes(len(names))))
    return directory


def plan(data: bytes) -> None:
    """Plans of loads of some tensors, in some order, to two destinations."""
    choices = Choices(data)
    orders: tuple[Order, Order] = ("file", "given")
    order = orders[choices.one(2)]
    sizes = [[SIZES[choices.one(len(SIZES))] for _ in range(1 + choices.one(12))] for _ in range(1 + choices.one(3))]
    checkpoint = checkpoint_of(sizes)
    left = list(checkpoint.place)
    names = [left.pop(choices.one(len(left))) for _ in range(choices.one(len(left) + 1))]
    far = {name for name in checkpoint.place if choices.one(2)}
    expect_sound(checkpoint, names, order, far.__contains__)


TARGETS: Mapping[str, Callable[[bytes], None]] = {"header": header, "file": file, "index": index, "plan": plan}
