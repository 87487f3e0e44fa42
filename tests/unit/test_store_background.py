"""The background scrub: in parts, oldest first, within its budget, behind everybody's back."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.abc.upkeep import ScrubLimits
from modelcache.errors import Cancelled, DamagedRecord
from modelcache.patience import Cancellation
from modelcache.store.background import LOWEST_NICE, RateLimit, give_way
from modelcache.store.direct import DiskReader
from modelcache.store.store import LocalStore
from modelcache.store.verified import MAGIC, decode_times, encode_times
from modelcache.testing.crash import flip_bit
from modelcache.testing.store_filling import content, digest_of, fill
from modelcache.testing.store_fixtures import NO_LIMITS, Clock
from modelcache.units import MIB

FILES = {f"part-{number}": content(MIB, seed=number) for number in range(6)}


@pytest.fixture
def clock() -> Clock:
    return Clock(1_700_000_000.0)


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> LocalStore:
    return LocalStore(tmp_path / "root", NO_LIMITS, clock=clock)


def scrub(store: LocalStore, budget_bytes: int | None) -> int:
    report = store.scrub(ScrubLimits(budget_bytes), Cancellation())
    assert report.damages == ()
    return report.bytes_read


def test_each_goes_on_where_the_last_one_ended(store: LocalStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = fill(store, FILES)
    opened: list[str] = []
    real = DiskReader.__init__

    def counted(self: DiskReader, path: Path, chunk_bytes: int, *, drop_cached: bool = True) -> None:
        opened.append(path.name)
        assert not drop_cached
        real(self, path, chunk_bytes, drop_cached=drop_cached)

    monkeypatch.setattr(DiskReader, "__init__", counted)
    for part in range(3):
        clock.pass_(60)
        assert scrub(store, 2 * MIB - 1) == 2 * MIB, "the blob in which the budget ends is read to its end"
        assert (store.verified_at_s(snapshot.digest) is None) == (part < 2)
    assert sorted(opened) == sorted(digest_of(data).hex for data in FILES.values()), "each once"
    assert store.verified_at_s(snapshot.digest) == clock.now_s - 120
    first = opened[:2]
    clock.pass_(60)
    scrub(store, 2 * MIB)
    assert set(opened[6:]) == set(first), "longest ago first"
    assert store.verified_at_s(snapshot.digest) == clock.now_s - 120
    assert scrub(store, 0) == 0
    assert scrub(store, None) == 6 * MIB


def test_new_blobs_first_and_gone_ones_forgotten(store: LocalStore, clock: Clock) -> None:
    snapshot = fill(store, FILES)
    scrub(store, None)
    clock.pass_(60)
    other = fill(store, {"new": content(MIB, seed=99)}, uri="s3://b/other")
    assert scrub(store, 1) == MIB
    assert store.verified_at_s(other.digest) == clock.now_s
    store.evict(snapshot.digest)
    scrub(store, None)
    assert decode_times((store.root / "verified").read_bytes()).keys() == {digest_of(content(MIB, seed=99)).hex}


def test_damage_is_taken_out_of_service(store: LocalStore) -> None:
    snapshot = fill(store, FILES)
    digits = digest_of(FILES["part-3"]).hex
    flip_bit(store.root / "blobs" / "sha256" / digits[:2] / digits, 5)
    report = store.scrub(ScrubLimits(), Cancellation())
    (damage,) = report.damages
    assert (damage.digest, damage.withdrawn) == (digest_of(FILES["part-3"]), (snapshot.digest,))
    assert digits not in decode_times((store.root / "verified").read_bytes())


def test_what_was_read_before_it_was_stopped_counts(store: LocalStore) -> None:
    fill(store, FILES)
    cancel = Cancellation()
    with pytest.raises(Cancelled):
        store.scrub(ScrubLimits(), cancel, lambda done, total: cancel.cancel() if done > 4 * MIB else None)
    assert len(decode_times((store.root / "verified").read_bytes())) == 5
    assert scrub(store, 1) == MIB


def test_a_damaged_record_is_none(store: LocalStore) -> None:
    snapshot = fill(store, FILES)
    scrub(store, None)
    flip_bit(store.root / "verified", 70)
    assert store.verified_at_s(snapshot.digest) is None
    assert scrub(store, None) == 6 * MIB
    assert store.verified_at_s(snapshot.digest) is not None


def test_a_verify_counts_too(store: LocalStore, clock: Clock) -> None:
    snapshot = fill(store, {"empty": b"", **FILES})
    store.verify(snapshot.digest, Cancellation())
    assert store.verified_at_s(snapshot.digest) == clock.now_s


# -- behind everybody's back --------------------------------------------------------------------------------------------


def test_one_thread_gives_way_and_no_other(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, FILES)
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    seen: list[int] = []
    real = DiskReader._fill

    def looked(self: DiskReader, view: memoryview, offset: int) -> int:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return real(self, view, offset)

    monkeypatch.setattr(DiskReader, "_fill", looked)
    scrub(store, None)
    assert set(seen) == {LOWEST_NICE}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_the_class_of_a_threads_reads_is_idle() -> None:
    number = {"x86_64": 252, "aarch64": 31}.get(platform.machine())
    if number is None:
        return  # The number of ioprio_get(2) is known here for these two alone.
    found: list[int] = []

    def look() -> None:
        give_way()
        found.append(ctypes.CDLL(None).syscall(number, 1, 0))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert [value >> 13 for value in found] == [3]


@given(st.lists(st.tuples(st.integers(1, 10 * MIB), st.floats(0, 10)), max_size=50))
def test_a_rate_is_kept_over_all(steps: list[tuple[int, float]]) -> None:
    """Whatever the reads take by themselves: no more than the rate over all, but for the burst of a second."""
    now = [0.0]
    rate = RateLimit(float(MIB), Cancellation(), lambda: now[0])
    total = 0
    for count, taken_s in steps:
        now[0] += taken_s
        total += count
        now[0] += rate.pause_s(count)
        assert total <= (now[0] + 1.0) * MIB * (1 + 1e-9)
    assert RateLimit(None, Cancellation()).pause_s(1 << 60) == 0.0


@given(st.dictionaries(st.binary(min_size=32, max_size=32).map(bytes.hex), st.integers(0, 2**40), max_size=20), st.data())
def test_the_record_comes_back_and_no_other_does(times: dict[str, int], data: st.DataObject) -> None:
    encoded = encode_times(times)
    assert decode_times(encoded) == times
    at = data.draw(st.integers(0, len(encoded) - 1))
    for wrong in (encoded[:at], encoded[:at] + bytes([encoded[at] ^ 1]) + encoded[at + 1 :], MAGIC):
        with pytest.raises(DamagedRecord):
            decode_times(wrong)
