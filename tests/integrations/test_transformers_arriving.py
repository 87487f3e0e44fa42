"""`from_pretrained` of a URI that isn't here begins at once, gives what transformers makes of the files, and no model if they prove
wrong."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import core_model_loading

import modelcache
import modelcache.integrations.transformers as ours
from modelcache.arriving import opening
from modelcache.arriving.model import AskedModel
from modelcache.arriving.opening import How
from modelcache.arriving.tensors import stream_opened
from modelcache.errors import BadConfig, BadShard, Cancelled, DigestMismatch, ModuleMismatch, NotFound
from modelcache.loader.checkpoint import open_checkpoint
from modelcache.loader.files import Way
from modelcache.loader.loading import Wishes
from modelcache.loader.report import LoadReport
from modelcache.loader.shard_plan import ShardPlan, Share
from modelcache.patience import Cancellation
from modelcache.testing.fetching import small_chunks
from modelcache.testing.memory_source import DEADLINE_S, MemorySource, state_sha256
from tests.integrations.test_transformers import llama, same
from tests.unit.arriving_model import cache_of

URI = "s3://models/llama"
CHUNK = 4096
PAGES_BYTES = 16 * 4096
"""Of files this small: pages in which what is read begins and ends."""


@pytest.fixture(autouse=True)
def small_and_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small chunks; no thread and no temporary file is left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(opening, "ARRIVING_EXTENT_BYTES", CHUNK)
    transformers.utils.logging.disable_progress_bar()
    with small_chunks(CHUNK):
        yield
    assert list(temporary.iterdir()) == []
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("awaited")] == []
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in shards, with another checkpoint beside it that transformers doesn't read."""
    path = tmp_path_factory.mktemp("llama")
    model = llama(tie_word_embeddings=False).to(torch.bfloat16)
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(path, max_shard_size="40KB")
    save_file({"tok_embeddings.weight": torch.zeros(3)}, path / "consolidated.safetensors")
    return path


def files_of(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.iterdir()}


def theirs(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path)


class Taken:
    """Names of the tensors that transformers has, as they come."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._changed = threading.Condition()

    def add(self, name: str) -> None:
        with self._changed:
            self._names.add(name)
            self._changed.notify_all()

    def wait_for(self, name: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: name in self._names, DEADLINE_S)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    names, materialize = Taken(), core_model_loading._materialize_copy

    def seen(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        found = materialize(tensor, *args, **kwargs)
        names.add(getattr(tensor, "name", ""))  # it reads files by itself, too
        return found

    monkeypatch.setattr(core_model_loading, "_materialize_copy", seen)
    return names


def place_of_last_bytes(path: Path) -> tuple[str, int, str]:
    """The shard of the most tensors, its size, and the name of its first tensor, which isn't its last."""
    shard = max(path.glob("model-*.safetensors"), key=lambda each: len(load_file(each)))
    tensors = open_checkpoint(shard).shards[0].header.tensors
    assert len(tensors) > 1
    return shard.name, shard.stat().st_size, tensors[0].name


@pytest.mark.parametrize("auto_class", [None, transformers.AutoModelForCausalLM])
def test_transformers_has_tensors_before_the_last_byte_is_served(tmp_path: Path, saved: Path, taken: Taken, auto_class: Any) -> None:
    source = MemorySource(files_of(saved))
    shard, size_bytes, first = place_of_last_bytes(saved)
    gate = source.gate(shard, size_bytes - 1)
    report = LoadReport()
    with cache_of(tmp_path / "root", source) as cache, ThreadPoolExecutor(1) as thread:
        coming = thread.submit(ours.from_pretrained, URI, cache=cache, auto_class=auto_class, report=report)
        taken.wait_for(first)
        assert cache.list() == []
        gate.open()
        mine = coming.result(DEADLINE_S)
        assert same(mine, theirs(saved))
        assert mine.name_or_path == mine.config.name_or_path == str(cache.ensure(URI).path)
        assert source.books.bytes == {name: len(data) for name, data in files_of(saved).items()}
        assert report.read_bytes[Way.ARRIVED] + report.read_bytes[Way.BUFFERED] > 0  # buffered: what had come before its place was known
        assert same(ours.from_pretrained(URI, cache=cache), theirs(saved))
        assert source.books.listings == 1


def test_bytes_that_prove_wrong_give_no_model(tmp_path: Path, saved: Path) -> None:
    source = MemorySource(files_of(saved), state=state_sha256)
    shard, size_bytes, *_ = place_of_last_bytes(saved)
    source.spoil(shard, size_bytes - 1, times=None)
    with cache_of(tmp_path / "root", source) as cache:
        with pytest.raises(DigestMismatch, match="does not match its digest"):
            ours.from_pretrained(URI, cache=cache)
        assert cache.list() == []


def test_a_first_pass_that_was_wrong_gives_no_model_once_transformers_has_some_of_it(tmp_path: Path, saved: Path, taken: Taken) -> None:
    source = MemorySource(files_of(saved), state=state_sha256)
    shard, size_bytes, first = place_of_last_bytes(saved)
    entry = open_checkpoint(saved / shard).find(first)[1]
    source.spoil(shard, entry.span.stop - 1)
    gate = source.gate(shard, size_bytes - 1)
    with cache_of(tmp_path / "root", source) as cache, ThreadPoolExecutor(1) as thread:
        coming = thread.submit(ours.from_pretrained, URI, cache=cache)
        taken.wait_for(first)
        gate.open()
        with pytest.raises(DigestMismatch, match="proved wrong"):
            coming.result(DEADLINE_S)
        assert same(ours.from_pretrained(URI, cache=cache), theirs(saved))
    source.spoil(shard, entry.span.stop - 1)
    with cache_of(tmp_path / "other", source) as cache:
        assert same(ours.from_pretrained(URI, cache=cache, verified_only=True), theirs(saved))


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors.index.json", "model-00001-of-00005.safetensors"]
)
def test_a_description_that_is_wrong_at_first_is_not_believed(tmp_path: Path, saved: Path, name: str) -> None:
    source = MemorySource(files_of(saved), state=state_sha256)
    source.spoil(name, 1)
    with cache_of(tmp_path / "root", source) as cache:
        assert same(ours.from_pretrained(URI, cache=cache), theirs(saved))


def test_whoever_cancels_waits_no_longer_and_chunks_are_kept(tmp_path: Path, saved: Path, taken: Taken) -> None:
    source = MemorySource(files_of(saved))
    shard, size_bytes, first = place_of_last_bytes(saved)
    gate, cancel = source.gate(shard, size_bytes - 1), Cancellation()
    with cache_of(tmp_path / "root", source) as cache, ThreadPoolExecutor(1) as thread:
        coming = thread.submit(ours.from_pretrained, URI, cache=cache, cancel=cancel)
        taken.wait_for(first)
        cancel.cancel()
        with pytest.raises(Cancelled):
            coming.result(DEADLINE_S)
        before = source.books.bytes.total()
        gate.open()
        assert same(ours.from_pretrained(URI, cache=cache), theirs(saved))
        assert source.books.bytes.total() - before < before


def test_what_is_known_to_be_wrong_is_said_before_the_model_is_here(tmp_path: Path, saved: Path) -> None:
    source = MemorySource({name: data for name, data in files_of(saved).items() if name != "config.json"})
    source.gate(place_of_last_bytes(saved)[0])
    with cache_of(tmp_path / "root", source) as cache:
        with pytest.raises(NotFound, match=r"no `config\.json`") as caught:
            ours.from_pretrained(URI, cache=cache)
        assert caught.value.address == URI


def test_what_transformers_reads_by_itself_is_awaited_whole(tmp_path: Path, saved: Path) -> None:
    source = MemorySource(files_of(saved))
    with cache_of(tmp_path / "root", source) as cache:
        report = LoadReport()
        assert same(ours.from_pretrained(URI, cache=cache, use_safetensors=True, report=report), theirs(saved))
        assert report.tensors == 0
    lacking = MemorySource(files_of(saved))
    with cache_of(tmp_path / "other", lacking) as cache, pytest.raises(ModuleMismatch, match=r"score\.weight") as caught:
        ours.from_pretrained(URI, cache=cache, auto_class=transformers.AutoModelForSequenceClassification)
    assert caught.value.address == URI


def second_rank(group: str, cache: modelcache.ModelCache, report: LoadReport) -> dict[str, torch.Tensor]:
    """What another process does that calls `from_pretrained`, but for transformers' part."""
    index, share = ours.WEIGHTS[1], Share(1, 2, ShardPlan({}))
    together = modelcache.NodeGroup(group)
    with AskedModel(URI, How(may_map=False, keeps_all=True), cache=cache, seen=report, member=together.member(1, 2)) as files:
        files.first(ours.FIRST, then=index)
        opened = files.open(index)
        names = opened.checkpoint.select(None)
        found = dict(stream_opened(opened, names, Wishes(), share=share, group=together, report=report))
        opened.finish(report)
    return found


@pytest.mark.parametrize("here", [False, True])
def test_ranks_of_a_group_read_the_files_once(tmp_path: Path, saved: Path, taken: Taken, here: bool) -> None:
    source = MemorySource(files_of(saved))
    reports = [LoadReport(), LoadReport()]
    group = f"llamas-{tmp_path}"
    shard, size_bytes, first = place_of_last_bytes(saved)
    root = tmp_path / "root"
    with cache_of(root, source) as cache, cache_of(root, source) as another, ThreadPoolExecutor(2) as threads:
        if here:
            cache.ensure(URI)
        gate = source.gate(shard, size_bytes - 1)
        other = threads.submit(second_rank, group, another, reports[1])
        mine = threads.submit(ours.from_pretrained, URI, cache=cache, ranks=(0, 2), group=group, report=reports[0])
        taken.wait_for(first)
        assert len(cache.list()) == here
        gate.open()
        model = mine.result(DEADLINE_S)
        assert same(model, theirs(saved))
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.result(DEADLINE_S).items())
        assert source.books.bytes == {name: len(data) for name, data in files_of(saved).items()}
        if here and not reports[0].read_bytes[Way.MAPPED]:  # it is mapped where it stayed in the page cache
            own_bytes = [report.read_bytes.total() - report.read_bytes[Way.SHARED] for report in reports]
            assert sum(own_bytes) <= reports[0].tensor_bytes * 1.05 + PAGES_BYTES
        if not here:
            assert sorted(report.read_bytes[Way.SHARED] > 0 for report in reports) == [False, True]
        with pytest.raises(BadConfig, match="by itself"):
            ours.from_pretrained(URI, cache=cache, ranks=(0, 2), group="llamas", use_safetensors=True)
    with pytest.raises(BadShard, match="which of how many"):
        ours.from_pretrained(saved, group="llamas")


def test_models_are_built_one_after_the_other_by_several_threads(tmp_path: Path, saved: Path) -> None:
    """transformers changes torch's own dtype, and its own classes, while it builds one."""
    source = MemorySource(files_of(saved))
    with cache_of(tmp_path / "root", source) as cache, ThreadPoolExecutor(4) as threads:
        models = list(threads.map(lambda number: ours.from_pretrained(f"{URI}-{number}", cache=cache), range(8)))
    assert all(same(model, theirs(saved)) for model in models)
    tied = llama(tie_word_embeddings=True)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
