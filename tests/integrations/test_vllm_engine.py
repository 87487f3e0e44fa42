"""vLLM's own engine with weights by the load format `modelcache`: it answers what it answers with its own load. `make test-vllm`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers

from modelcache import ModelCache
from modelcache.testing.models import smollm2

pytestmark = [pytest.mark.soak, pytest.mark.vllm, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".cache" / "vllm" / "bin" / "python"
ANSWERS = Path(__file__).parent / "vllm_answers.py"
MEMORY, SHARED = Path("/dev/shm"), "vllm_dist_*-cpushm_*"
ENVIRON = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0|1",  # two workers on a machine of one NUMA node
}


@contextmanager
def place_of_its_own() -> Iterator[str]:
    """For what an engine leaves behind: sockets and files, in a directory whose path is short enough for a socket's, and the memory that
    its workers shared, which has names that only they know."""
    others = {*MEMORY.glob(SHARED)}
    try:
        with TemporaryDirectory(prefix="vllm-") as directory:
            yield directory
    finally:
        for path in {*MEMORY.glob(SHARED)} - others:
            path.unlink()


def answers(tmp_path: Path, engines: Sequence[Mapping[str, Any]], *, fails: bool = False) -> Any:
    """What each engine answers; with `fails` the errors that the first one gives instead."""
    told = tmp_path / "answers.json"
    command = [str(PYTHON), str(ANSWERS), str(told)]
    with place_of_its_own() as place, (tmp_path / "log").open("w+") as log:
        environ = {**os.environ, **ENVIRON, "TMPDIR": place, "VLLM_RPC_BASE_PATH": place, "MODELCACHE_ROOT": str(tmp_path / "store")}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environ, cwd=tmp_path, start_new_session=True
        )
        try:
            process.communicate(json.dumps(engines).encode(), timeout=1100)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        said = log.read()
    assert (process.returncode != 0) == fails, said[-6000:]
    return said if fails else json.loads(told.read_text())


def without_weights(model: Path, directory: Path) -> Path:
    """What vLLM itself reads of a model: configuration and tokenizer."""
    directory.mkdir()
    for path in model.iterdir():
        if ".safetensors" not in path.name:
            shutil.copy(path, directory)
    return directory


def by_us(model: Path, weights: Path) -> dict[str, Any]:
    return {"model": str(model), "load_format": "modelcache", "model_loader_extra_config": {"uri": weights.as_uri()}}


def test_a_real_model_answers_as_with_vllms_own_load(tmp_path: Path) -> None:
    model = smollm2(ROOT / ".cache" / "models").directory
    bare = without_weights(model, tmp_path / "bare")
    ours, theirs = answers(tmp_path, [by_us(bare, model), {"model": str(model)}])
    assert ours["text"].startswith(" Paris")
    assert ours == theirs
    with ModelCache(tmp_path / "store") as cache:  # it came through the store
        assert cache.find(model.as_uri()).path.is_dir()


def llama(directory: Path) -> Path:
    """Two layers of random bf16 weights, in several shards."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 49152}
    config = transformers.LlamaConfig(num_hidden_layers=2, max_position_embeddings=256, **sizes)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory, max_shard_size="8MB")
    return directory


def test_workers_in_processes_of_their_own_each_take_their_part(tmp_path: Path) -> None:
    model = llama(tmp_path / "llama")
    words = without_weights(smollm2(ROOT / ".cache" / "models").directory, tmp_path / "bare")
    shutil.copy(model / "config.json", words)
    two = {"tensor_parallel_size": 2, "tokenizer": str(words)}
    ours, theirs = answers(tmp_path, [{**by_us(words, model), **two}, {"model": str(model), **two}])
    assert ours == theirs
    assert len({*ours["tokens"]}) > 1


def test_a_draft_model_of_its_own_beside_one_by_uri(tmp_path: Path) -> None:
    model = smollm2(ROOT / ".cache" / "models").directory
    bare = without_weights(model, tmp_path / "bare")
    draft = {"model": str(llama(tmp_path / "llama")), "method": "draft_model", "num_speculative_tokens": 2}
    [drafted] = answers(tmp_path, [{**by_us(bare, model), "speculative_config": draft}])
    assert drafted["text"].startswith(" Paris")


def test_an_engine_that_cannot_have_its_weights_does_not_start_and_says_why(tmp_path: Path) -> None:
    model = smollm2(ROOT / ".cache" / "models").directory
    said = answers(tmp_path, [by_us(without_weights(model, tmp_path / "bare"), tmp_path / "nowhere")], fails=True)
    assert f"NotFound: no such file or directory: {(tmp_path / 'nowhere').as_uri()}" in said, said[-6000:]
