"""A group of ranks and a model that arrives: each has its parts bit by bit, of bytes that one of them fetched once, before the last byte is
served; how it ends for one it ends for all. Ranks are threads, each with a cache of its own over one store, as processes have."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save

import modelcache
from modelcache.abc.ingest import Route
from modelcache.arriving import opening
from modelcache.errors import BadCheckpoint, BadShard, Cancelled, DigestMismatch, GroupBroken, SourceChanged
from modelcache.loader import brought, shard_plan
from modelcache.loader import exchange as exchanging
from modelcache.loader.exchange import Exchange, Word
from modelcache.loader.files import Way
from modelcache.loader.plan import BLOCK_BYTES
from modelcache.loader.report import LoadReport
from modelcache.patience import Cancellation
from modelcache.testing.fetching import small_chunks
from modelcache.testing.memory_source import DEADLINE_S, MemorySource, state_sha256
from modelcache.units import MIB
from tests.unit.arriving_model import CHUNK, TWO, URI, cache_of, raw, shards_of

Plan = dict[str, Any]
groups = itertools.count()


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """Blocks of two chunks, parts of a chunk that are read alone; no thread of a load is left."""
    with small_chunks(CHUNK), pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "ARRIVING_EXTENT_BYTES", 2 * CHUNK)
        patch.setattr(shard_plan, "RUN_BYTES", CHUNK)
        yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("load")] == []


def matrices(shapes: Sequence[tuple[int, int]], seed: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    kinds = itertools.cycle(("rows", "columns", "whole", "owned"))
    return {
        f"{seed}.{number}.{kind}": torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, generator=source)
        for number, (shape, kind) in enumerate(zip(shapes, kinds, strict=False))
    }


PLAN: Plan = {"*.rows": 0, "*.columns": 1, "*.owned": modelcache.Owned(1)}
SHARDS = [matrices([(24, 1024), (12, 3072), (7, 500), (12, 1024), (12, 240)], seed) for seed in (1, 2)]


def part(name: str, tensor: torch.Tensor, rank: int, world: int) -> torch.Tensor:
    if name.endswith(("whole", "owned")):
        return tensor
    return tensor.chunk(world, 0 if name.endswith("rows") else 1)[rank]


def check(
    loaded: Mapping[str, torch.Tensor], names: Sequence[str], rank: int, world: int, shards: Sequence[Mapping[str, torch.Tensor]]
) -> None:
    wanted = {name: tensor for shard in shards for name, tensor in shard.items() if name in names}
    assert list(loaded) == [name for name in names if rank == 1 or not name.endswith("owned")]
    for name, tensor in loaded.items():
        expected = part(name, wanted[name], rank, world)
        assert (tensor.dtype, tensor.shape, raw(tensor)) == (expected.dtype, expected.shape, raw(expected))


class Ranks:
    """Threads that load, each with a cache of its own."""

    def __init__(self, world: int, caches: Sequence[modelcache.ModelCache], pool: ThreadPoolExecutor) -> None:
        self.world = world
        self.caches = caches
        self.reports = [LoadReport() for _ in range(world)]
        self.first = [threading.Event() for _ in range(world)]
        self._pool = pool

    def begin(self, each: Callable[[int], dict[str, Any]] = lambda rank: {}, **arguments: Any) -> list[Future[dict[str, torch.Tensor]]]:
        """Each rank's load. `each`: its own arguments."""
        names = [name for shard in SHARDS for name in shard if self.world > 1 or not name.endswith("owned")]
        plan = {
            pattern: rule for pattern, rule in PLAN.items() if any(name.endswith(pattern[1:]) for name in arguments.get("names") or names)
        }
        given = {"shard": plan, "group": modelcache.NodeGroup(f"arriving-{next(groups)}", timeout_s=DEADLINE_S), **arguments}
        return [self._pool.submit(self._load, rank, {**given, **each(rank)}) for rank in range(self.world)]

    def _load(self, rank: int, arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        arguments["shard"] = (rank, self.world, arguments["shard"])
        given = {"cache": self.caches[rank], "report": self.reports[rank], **arguments}
        for name, tensor in modelcache.stream(URI, **given):
            found[name] = tensor
            self.first[rank].set()
        return found

    def await_first(self) -> None:
        """Until each has a tensor."""
        for event in self.first:
            assert event.wait(DEADLINE_S)

    @property
    def bringer(self) -> int:
        [rank] = [rank for rank, report in enumerate(self.reports) if report.read_bytes[Way.ARRIVED] + report.read_bytes[Way.BUFFERED]]
        return rank


@contextmanager
def ranks_of(root: Path, source: MemorySource, world: int = 2, route: Route | None = None) -> Iterator[Ranks]:
    with ExitStack() as ends:
        caches = [ends.enter_context(cache_of(root, source, route)) for _ in range(world)]
        yield Ranks(world, caches, ends.enter_context(ThreadPoolExecutor(world, thread_name_prefix="rank")))


def served(source: MemorySource) -> dict[str, int]:
    return dict(source.books.bytes)


@settings(max_examples=15, deadline=None)
@given(
    shapes=st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2000)), min_size=1, max_size=6), min_size=1, max_size=3),
    world=st.integers(2, 3),
    order=st.sampled_from(["file", "given"]),
    shuffled=st.randoms(use_true_random=False),
    memory_bytes=st.sampled_from([BLOCK_BYTES, 4 * BLOCK_BYTES]),
    route=st.sampled_from(Route),
    resumable=st.booleans(),
    may_map=st.sampled_from([None, False]),
)
def test_every_rank_has_its_parts_of_bytes_that_come_once(
    shapes: list[list[tuple[int, int]]],
    world: int,
    order: Any,
    shuffled: Any,
    memory_bytes: int,
    route: Route,
    resumable: bool,
    may_map: bool | None,
) -> None:
    shards = [matrices([(6 * rows, 6 * columns) for rows, columns in each], seed) for seed, each in enumerate(shapes)]
    files = shards_of(*shards)
    source = MemorySource(files, state=state_sha256, resumable=resumable)
    names = [name for shard in shards for name in shard]
    if order == "given":
        shuffled.shuffle(names)
    plan = {pattern: rule for pattern, rule in PLAN.items() if any(name.endswith(pattern[1:]) for name in names)}
    group = modelcache.NodeGroup(f"arriving-{next(groups)}", memory_bytes=memory_bytes, timeout_s=DEADLINE_S)
    with TemporaryDirectory() as directory, ranks_of(Path(directory) / "root", source, world, route) as ranks:
        given = names if order == "given" else None
        found = [coming.result(DEADLINE_S) for coming in ranks.begin(shard=plan, names=given, order=order, group=group, may_map=may_map)]
        if order == "file":
            names = list(in_file_order(ranks.caches[0]))
        for rank, loaded in enumerate(found):
            check(loaded, names, rank, world, shards)
        assert served(source) == {path: len(data) for path, data in files.items()}
        assert len(ranks.caches[0].list()) == 1


FILES = shards_of(*SHARDS)


def in_file_order(cache: modelcache.ModelCache) -> Sequence[str]:
    return modelcache.open_checkpoint(URI, cache=cache).select(None)


def test_all_ranks_have_tensors_before_the_last_byte_is_served_and_the_snapshot_after(tmp_path: Path) -> None:
    source = MemorySource(FILES)
    gate = source.gate(TWO, len(FILES[TWO]) - 1)
    with ranks_of(tmp_path / "root", source, 3) as ranks:
        coming = ranks.begin()
        ranks.await_first()
        assert ranks.caches[0].list() == []
        gate.open()
        for rank, each in enumerate(coming):
            check(each.result(DEADLINE_S), in_file_order(ranks.caches[0]), rank, 3, SHARDS)
        assert served(source) == {path: len(data) for path, data in FILES.items()}
        assert [report.read_bytes[Way.SHARED] > 0 for report in ranks.reports].count(True) == 2
        assert [report.read_bytes.total() for report in ranks.reports if set(report.read_bytes) > {Way.SHARED}] == []
        again = ranks.begin()
        for rank, each in enumerate(again):
            check(each.result(DEADLINE_S), in_file_order(ranks.caches[0]), rank, 3, SHARDS)
        assert source.books.listings == 3


def test_bytes_that_stay_wrong_are_a_wrong_digest_for_every_rank(tmp_path: Path) -> None:
    source = MemorySource(FILES, state=state_sha256)
    source.spoil(TWO, 5 * CHUNK, times=None)
    with ranks_of(tmp_path / "root", source, 3) as ranks:
        errors = [each.exception(DEADLINE_S) for each in ranks.begin()]
        assert [type(error) for error in errors] == [DigestMismatch] * 3, errors
        assert {str(error) for error in errors} == {str(errors[0])}
        assert ranks.caches[0].list() == []


def test_a_first_pass_that_was_wrong_is_told_to_every_rank(tmp_path: Path) -> None:
    source = MemorySource(FILES, state=state_sha256)
    source.spoil("model-00001-of-00002.safetensors", 5 * CHUNK)
    gate = source.gate("model-00001-of-00002.safetensors", len(FILES["model-00001-of-00002.safetensors"]) - 1)
    with ranks_of(tmp_path / "root", source, 2) as ranks:
        coming = ranks.begin()
        ranks.await_first()
        gate.open()
        errors = [each.exception(DEADLINE_S) for each in coming]
        assert all(isinstance(error, DigestMismatch) and "proved wrong" in str(error) for error in errors), errors
        for rank, each in enumerate(ranks.begin()):
            check(each.result(DEADLINE_S), in_file_order(ranks.caches[0]), rank, 2, SHARDS)


def test_a_header_that_comes_wrong_once_is_read_again_by_every_rank_when_it_is_verified(tmp_path: Path) -> None:
    source = MemorySource(FILES, state=state_sha256)
    source.spoil(TWO, 9)
    with ranks_of(tmp_path / "root", source, 2) as ranks:
        for rank, each in enumerate(ranks.begin()):
            check(each.result(DEADLINE_S), in_file_order(ranks.caches[0]), rank, 2, SHARDS)


def test_a_model_that_changes_under_the_load_is_never_mixed(tmp_path: Path) -> None:
    """A file of the same size and shapes: the next load has the new version whole."""
    changed = {name: -tensor for name, tensor in SHARDS[1].items()}
    source = MemorySource(FILES)
    gate = source.gate(TWO, len(FILES[TWO]) - 1)
    with ranks_of(tmp_path / "root", source, 2) as ranks:
        coming = ranks.begin(names=["2.*"])
        ranks.await_first()
        source.put(TWO, shards_of(SHARDS[0], changed)[TWO])
        gate.open()
        errors = [each.exception(DEADLINE_S) for each in coming]
        assert all(isinstance(error, DigestMismatch | SourceChanged) for error in errors), errors
        for rank, each in enumerate(ranks.begin()):
            check(each.result(DEADLINE_S), in_file_order(ranks.caches[0]), rank, 2, [SHARDS[0], changed])


def test_ranks_go_on_with_the_fetch_that_takes_the_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that is the same and has another version; what a rank maps may lie in both of its files."""
    monkeypatch.setattr(brought, "BLOCK_BYTES", CHUNK)
    source = MemorySource(FILES)
    gate = source.gate(TWO, len(FILES[TWO]) // 2)
    with ranks_of(tmp_path / "root", source, 2) as ranks:
        coming = ranks.begin()
        ranks.await_first()
        source.put(TWO, FILES[TWO])
        gate.open()
        for rank, each in enumerate(coming):
            check(each.result(DEADLINE_S), in_file_order(ranks.caches[0]), rank, 2, SHARDS)
        assert source.books.listings > 2


def test_headers_that_stay_wrong_are_no_checkpoint_for_every_rank(tmp_path: Path) -> None:
    with ranks_of(tmp_path / "root", MemorySource({**FILES, TWO: b"\x08"}), 2) as ranks:
        errors = [each.exception(DEADLINE_S) for each in ranks.begin()]
        assert [type(error) for error in errors] == [BadCheckpoint] * 2


def test_a_rank_that_leaves_ends_it_for_all(tmp_path: Path) -> None:
    source = MemorySource(FILES)
    source.gate(TWO, len(FILES[TWO]) - 1)
    cancel = Cancellation()
    with ranks_of(tmp_path / "root", source, 3) as ranks:
        coming = ranks.begin(lambda rank: {"cancel": cancel} if rank == 1 else {})
        ranks.await_first()
        cancel.cancel()
        errors = [each.exception(DEADLINE_S) for each in coming]
        assert [type(error) for error in errors] == [GroupBroken, Cancelled, GroupBroken]
        assert ranks.caches[0].list() == []


def test_one_that_wants_verified_bytes_alone_has_all_wait(tmp_path: Path) -> None:
    source = MemorySource(FILES)
    gate = source.gate(TWO, len(FILES[TWO]) - 1)
    with ranks_of(tmp_path / "root", source, 2) as ranks:
        coming = ranks.begin(lambda rank: {"verified_only": rank == 1})
        gate.await_readers()
        assert not any(event.is_set() for event in ranks.first)
        gate.open()
        for rank, each in enumerate(coming):
            check(each.result(DEADLINE_S), in_file_order(ranks.caches[0]), rank, 2, SHARDS)
        assert served(source) == {path: len(data) for path, data in FILES.items()}


def test_what_another_process_brings_is_awaited(tmp_path: Path) -> None:
    source = MemorySource(FILES)
    gate = source.gate(TWO, len(FILES[TWO]) - 1)
    with ranks_of(tmp_path / "root", source, 2) as ranks, cache_of(tmp_path / "root", source) as other, ThreadPoolExecutor(1) as thread:
        pulled = thread.submit(other.ensure, URI)
        gate.await_readers()
        coming = ranks.begin()
        gate.open()
        for rank, each in enumerate(coming):
            check(each.result(DEADLINE_S), in_file_order(ranks.caches[0]), rank, 2, SHARDS)
        pulled.result(DEADLINE_S)
        assert served(source) == {path: len(data) for path, data in FILES.items()}


def test_ranks_that_mean_different_versions_are_told(tmp_path: Path) -> None:
    source, later = MemorySource(FILES), MemorySource(FILES)
    later.put(TWO, FILES[TWO])
    with cache_of(tmp_path / "root", source) as one, cache_of(tmp_path / "root", later) as two, ThreadPoolExecutor(2) as pool:
        errors = [each.exception(DEADLINE_S) for each in Ranks(2, [one, two], pool).begin()]
        assert [type(error) for error in errors] == [BadShard] * 2


def test_a_rank_that_takes_other_names_is_told(tmp_path: Path) -> None:
    with ranks_of(tmp_path / "root", MemorySource(FILES), 2) as ranks:
        errors = [each.exception(DEADLINE_S) for each in ranks.begin(lambda rank: {"names": [f"{rank + 1}.*"]})]
        assert [type(error) for error in errors] == [BadShard] * 2


def test_an_origin_that_stands_still_for_longer_than_the_timeout_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the exchange goes on by two thirds of the timeout each time the others hear that their bringer waits."""
    ahead_s, heard, enough = [0.0], Exchange._hear, threading.Event()

    def hear(exchange: Exchange, rank: int, word: int, number: int, where: int = 0) -> None:
        heard(exchange, rank, word, number, where)
        if word == Word.WAITS and rank != exchange._rank:
            ahead_s.append(ahead_s[-1] + DEADLINE_S * 2 / 3)
            if len(ahead_s) > 4:
                enough.set()

    monkeypatch.setattr(Exchange, "_hear", hear)
    monkeypatch.setattr(exchanging, "WAITS_S", 0.05)
    monkeypatch.setattr(exchanging, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead_s[-1]))
    source = MemorySource(FILES)
    gate = source.gate(TWO, len(FILES[TWO]) - 1)
    with ranks_of(tmp_path / "root", source, 2) as ranks:
        coming = ranks.begin()
        assert enough.wait(DEADLINE_S)
        gate.open()
        for rank, each in enumerate(coming):
            check(each.result(DEADLINE_S), in_file_order(ranks.caches[0]), rank, 2, SHARDS)


def module_of(parts: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """With a place for each of these."""
    root = torch.nn.Module()
    for name, tensor in parts.items():
        *path, last = name.split(".")
        here = root
        for step in path:
            if step not in dict(here.named_children()):
                here.add_module(step, torch.nn.Module())
            here = here.get_submodule(step)
        here.register_buffer(last, torch.empty_like(tensor))
    return root


def test_modules_that_are_ranks_parts_are_filled_as_the_model_arrives(tmp_path: Path) -> None:
    source = MemorySource(FILES)
    gate = source.gate(TWO, len(FILES[TWO]) - 1)
    wanted = [{name: part(name, tensor, rank, 2) for shard in SHARDS for name, tensor in shard.items()} for rank in range(2)]
    modules = [module_of(each) for each in wanted]
    group = f"arriving-{next(groups)}"

    def fill(rank: int, cache: modelcache.ModelCache) -> None:
        modelcache.load_into(modules[rank], URI, shard=(rank, 2, {**PLAN, "*.owned": None}), group=group, cache=cache)

    with ranks_of(tmp_path / "root", source, 2) as ranks, ThreadPoolExecutor(2) as threads:
        coming = [threads.submit(fill, rank, cache) for rank, cache in enumerate(ranks.caches)]
        gate.await_readers()
        assert ranks.caches[0].list() == []
        gate.open()
        for each in coming:
            each.result(DEADLINE_S)
        assert served(source) == {path: len(data) for path, data in FILES.items()}
    for module, parts in zip(modules, wanted, strict=True):
        found = module.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in parts.items())


def test_headers_longer_than_what_a_link_takes_at_once(tmp_path: Path) -> None:
    """Over a MiB each."""
    files = {
        name: save(dict(shard), metadata={"about": "x" * (MIB + seed)})
        for seed, (name, shard) in enumerate(zip(("1.safetensors", "2.safetensors"), SHARDS, strict=True))
    }
    with ranks_of(tmp_path / "root", MemorySource(files), 3) as ranks:
        for rank, each in enumerate(ranks.begin()):
            check(each.result(DEADLINE_S), in_file_order(ranks.caches[0]), rank, 3, SHARDS)
