"""Wrong bytes of a model that arrives: what was handed out too early is told."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save

import modelcache
from modelcache.abc.ingest import Route
from modelcache.arriving import opening
from modelcache.arriving.file import ArrivingFile
from modelcache.arriving.passing import Passing
from modelcache.errors import DigestMismatch
from modelcache.loader import loading
from modelcache.loader.files import Way
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.store.incoming import LocalIncoming
from modelcache.testing.memory_source import DEADLINE_S, MemorySource, state_sha256
from tests.unit.arriving_model import (
    CHUNK,
    ONE,
    TWO,
    URI,
    WITH_SECRET,
    A,
    B,
    cache_of,
    check,
    raw,
    shards_of,
    tensors_of,
)

pytestmark = pytest.mark.usefixtures("chunk_bytes")


def test_tensors_of_bytes_that_stay_wrong_are_handed_out_and_the_call_fails(tmp_path: Path) -> None:
    source = MemorySource(shards_of(A, B), state=state_sha256)
    source.spoil(TWO, 5 * CHUNK, times=None)
    gate = source.gate(TWO, 6 * CHUNK)
    with cache_of(tmp_path / "root", source) as cache:
        tensors = modelcache.stream(URI, cache=cache)
        first = dict(next(tensors) for _ in A)
        gate.open()
        with pytest.raises(DigestMismatch, match="does not match its digest"):
            dict(tensors)
        check(first, A)
        assert cache.list() == []
        with pytest.raises(DigestMismatch):
            modelcache.load(URI, cache=cache)
        assert cache.list() == []


def test_verified_only_hands_out_nothing_of_a_file_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last byte. That byte is let through when the load waits for the verdict, or when a tensor of the file came out without."""
    second = tensors_of([7 * CHUNK, 3 * CHUNK], seed=2)
    files = shards_of(A, second)
    source = MemorySource(files, state=state_sha256, piece_bytes=CHUNK)
    source.spoil(TWO, len(files[TWO]) - 1, times=None)
    gate = source.gate(TWO, len(files[TWO]) - 1)
    got: list[str] = []
    waited: list[bool] = []
    wait_complete = Passing.wait_complete

    def waiting(passing: Passing, cancel: Cancellation) -> None:
        if passing.incoming.path == TWO:
            gate.await_readers()
            waited.append(set(got) <= set(A))
            gate.open()
        wait_complete(passing, cancel)

    def take(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, _ in tensors:
            got.append(name)
            if name in second:
                gate.open()

    monkeypatch.setattr(Passing, "wait_complete", waiting)
    monkeypatch.setattr(opening, "ARRIVING_EXTENT_BYTES", CHUNK)
    with cache_of(tmp_path / "root", source) as cache:
        with pytest.raises(DigestMismatch, match="does not match its digest"):
            take(modelcache.stream(URI, cache=cache, verified_only=True))
        assert set(got) <= set(A)
        assert waited
        assert all(waited)


@pytest.mark.parametrize("route", Route)
def test_a_tensor_of_the_pass_that_was_wrong_is_told_of_when_the_second_pass_was_right(tmp_path: Path, route: Route) -> None:
    files = shards_of(A, B)
    source = MemorySource(files, state=state_sha256)
    source.spoil(ONE, 5 * CHUNK)
    gate = source.gate(ONE, len(files[ONE]) - 1)
    with cache_of(tmp_path / "root", source, route) as cache:
        tensors = modelcache.stream(WITH_SECRET, cache=cache)
        with patch.object(opening, "ARRIVING_EXTENT_BYTES", CHUNK):
            name, tensor = next(tensors)
        assert raw(tensor) != raw(A[name])
        gate.open()
        with pytest.raises(DigestMismatch, match=f"of `{ONE}` were handed out while they arrived, and proved wrong") as caught:
            dict(tensors)
        assert caught.value.address == "https://models.example/llama"
        assert len(cache.list()) == 1  # which is right
        check(modelcache.load(WITH_SECRET, cache=cache), A, B)


def test_memory_that_was_meant_for_bytes_of_a_file_comes_back_when_they_are_read_of_the_verified_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemorySource(shards_of(A, B))
    gate, verified = source.gate(TWO, 13 * CHUNK), threading.Event()
    completed, read = Passing.completed, ArrivingFile.read

    def tell(passing: Passing) -> None:
        completed(passing)
        if passing.incoming.path == TWO:
            verified.set()

    def late(file: ArrivingFile, block: ByteRange, into: memoryview) -> Way:
        if file.path.name == TWO and threading.current_thread().name.startswith("load"):  # and not to know its header
            gate.open()
            assert verified.wait(DEADLINE_S)
        return read(file, block, into)

    monkeypatch.setattr(Passing, "completed", tell)
    monkeypatch.setattr(ArrivingFile, "read", late)
    monkeypatch.setattr(opening, "ARRIVING_EXTENT_BYTES", CHUNK)
    with cache_of(tmp_path / "root", source) as cache:
        before_bytes = loading.memory.lent_bytes
        for name, tensor in modelcache.stream(URI, cache=cache, may_map=False):
            assert raw(tensor) == raw({**A, **B}[name])
            del tensor
            if name == "layers.2.2":  # of the last page: what was meant for all others is back
                assert loading.memory.lent_bytes - before_bytes <= CHUNK


def test_what_was_taken_just_before_the_second_pass_begins_is_not_taken_for_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a reader's last look at the memory and its look at the pass."""
    source = MemorySource(shards_of(A, B), state=state_sha256)
    source.spoil(ONE, 12 * CHUNK)
    close, restart, restarted = Passing._close, LocalIncoming.restart, Passing.restarted
    taken, again = threading.Event(), threading.Event()

    def restart_late(file: LocalIncoming) -> None:
        assert taken.wait(DEADLINE_S)
        restart(file)

    def tell(passing: Passing) -> None:
        restarted(passing)
        again.set()

    def close_early(passing: Passing, place: Any, block: ByteRange, *, settle: bool) -> Sequence[ByteRange]:
        gaps = close(passing, place, block, settle=settle)
        if passing.incoming.path == ONE and block.stop > 12 * CHUNK:
            taken.set()
            assert again.wait(DEADLINE_S)
        return gaps

    monkeypatch.setattr(LocalIncoming, "restart", restart_late)
    monkeypatch.setattr(Passing, "restarted", tell)
    monkeypatch.setattr(Passing, "_close", close_early)
    with cache_of(tmp_path / "root", source) as cache:
        check(modelcache.load(URI, cache=cache), A, B)


def test_a_second_pass_is_no_error_where_nothing_wrong_was_handed_out(tmp_path: Path) -> None:
    """What was, was right already in the first pass; or it waited for the verdict."""
    source = MemorySource(shards_of(A, B), state=state_sha256)
    source.spoil(ONE, len(save(A)) - 1)
    with cache_of(tmp_path / "root", source) as cache:
        check(modelcache.load(URI, cache=cache, names=["layers.1.0"]), {"layers.1.0": A["layers.1.0"]})
    source.spoil(TWO, 5 * CHUNK)
    with cache_of(tmp_path / "another", source) as cache:
        check(modelcache.load(URI, cache=cache, verified_only=True), A, B)


@pytest.mark.parametrize("offset", [0, 1, 9])
def test_a_header_that_comes_wrong_once_is_read_again_when_it_is_verified(tmp_path: Path, offset: int) -> None:
    source = MemorySource(shards_of(A, B), state=state_sha256)
    source.spoil(TWO, offset)
    with cache_of(tmp_path / "root", source) as cache:
        check(modelcache.load(URI, cache=cache), A, B)
