"""Bounds on bytes a second: counted on a clock that passes only in pauses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.abc.source import Origin, RemoteFile
from modelcache.config import Config
from modelcache.errors import BadConfig, Cancelled
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.registry import Registry
from modelcache.sources.retrying import Pace
from modelcache.sources.throttled import BURST_S, LEAST_PIECE_BYTES, PIECES_PER_S, Allowance, Allowances, RateLimits
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.fetching import place
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.source_contract import read as read_whole
from modelcache.testing.store_filling import content
from modelcache.uri import parse_uri

DATA = content(1_000_000)


@dataclass
class Clock:
    now: float = 1000.0
    pauses: list[float] = field(default_factory=list)

    def pace(self) -> Pace:
        return Pace(lambda: self.now, self.pause, lambda: 0.5)

    def pause(self, cancel: Cancellation, seconds: float) -> None:
        cancel.check()
        self.pauses.append(seconds)
        self.now += seconds


def memory(endpoint: str = "https://h:443") -> MemorySource:
    return MemorySource({"a": DATA}, endpoint=endpoint)


def described(source: MemorySource) -> RemoteFile:
    return source.list(place(), Cancellation()).files[0]


def read(allowances: Allowances, source: MemorySource) -> Iterator[bytes]:
    """Pieces of the file as they come, into a buffer for all of it."""
    body = allowances.bound(source).open(described(source), ByteRange(0, len(DATA)), Cancellation())
    buffer = bytearray(len(DATA))
    try:
        while count := body.readinto(memoryview(buffer)):
            yield bytes(buffer[:count])
    finally:
        body.close()


@given(rate=st.integers(10_000, 10_000_000))
def test_bytes_take_their_time_and_no_longer(rate: int) -> None:
    clock = Clock()
    assert b"".join(read(Allowances(RateLimits(rate), clock.pace()), memory())) == DATA
    assert len(DATA) / rate - BURST_S - 1e-6 <= clock.now - 1000 <= len(DATA) / rate + 1e-6


def test_all_who_read_share_one_allowance_and_one_origin_has_its_own_besides() -> None:
    clock = Clock()
    allowances = Allowances(RateLimits(400_000, {"SLOW": 100_000, "h:8443": 50_000}), clock.pace())
    quick = [read(allowances, memory()) for _ in range(3)]
    while sum(len(next(one, b"")) for one in quick):
        pass
    assert clock.now - 1000 == pytest.approx(3 * len(DATA) / 400_000, abs=BURST_S)
    for endpoint, rate in {"https://slow:443": 100_000, "http://slow:80": 100_000, "https://h:8443": 50_000}.items():
        begun = clock.now
        assert b"".join(read(allowances, memory(endpoint))) == DATA
        assert clock.now - begun == pytest.approx(len(DATA) / rate, abs=2 * BURST_S)


def test_what_was_not_used_is_not_saved_up() -> None:
    clock = Clock()
    allowance = Allowance(1000, clock.pace())
    allowance.spend(1000, Cancellation())
    clock.now += 3600
    for _ in range(10):
        allowance.spend(1000, Cancellation())
    assert sum(clock.pauses[1:]) == pytest.approx(10 - BURST_S)


def test_one_read_takes_little_so_that_many_connections_take_turns() -> None:
    pieces = [len(piece) for piece in read(Allowances(RateLimits(160_000), Clock().pace()), memory())]
    assert max(pieces) == 160_000 // PIECES_PER_S
    pieces = [len(piece) for piece in read(Allowances(RateLimits(of={"h": 1}), Clock().pace()), memory())]
    assert max(pieces) == LEAST_PIECE_BYTES


def test_what_is_on_this_machine_is_not_bounded() -> None:
    allowances = Allowances(RateLimits(1000))
    assert allowances.for_origin(Origin("file://")) == allowances.for_origin(Origin("pvc://claim")) == ()
    assert len(allowances.for_origin(Origin("abfs://account"))) == 1
    assert Allowances(RateLimits()).for_origin(Origin("https://h:443")) == ()


@pytest.mark.parametrize(("host", "origin"), [("[::1]", "http://[::1]:8080"), ("[::1]:8080", "http://[::1]:8080"), ("H", "https://h:443")])
def test_a_host_is_named_with_its_port_or_without(host: str, origin: str) -> None:
    assert len(Allowances(RateLimits(of={host: 1})).for_origin(Origin(origin))) == 1


def test_a_body_that_is_open_goes_at_the_rates_as_they_change() -> None:
    clock = Clock()
    allowances = Allowances(RateLimits(), clock.pace())
    body = allowances.bound(source := memory()).open(described(source), ByteRange(0, len(DATA)), Cancellation())

    def take(count: int) -> float:
        begun = clock.now
        while count:
            count -= body.readinto(memoryview(bytearray(count)))
        return clock.now - begun

    assert take(100_000) == 0
    allowances.change(RateLimits(10_000))
    assert take(100_000) == pytest.approx(10, abs=BURST_S)
    allowances.change(RateLimits(50_000, {"h": 20_000}))
    assert take(100_000) == pytest.approx(5, abs=2 * BURST_S)
    allowances.change(RateLimits(50_000))
    assert take(100_000) == pytest.approx(2, abs=2 * BURST_S)
    allowances.change(RateLimits(of={"elsewhere": 1}))
    assert take(100_000) == 0
    assert allowances.limits == RateLimits(of={"elsewhere": 1})
    body.close()


@pytest.mark.parametrize("new", [RateLimits(), RateLimits(2_000_000), RateLimits(of={"h": 2_000_000})])
def test_who_waits_for_a_byte_a_second_is_woken_by_the_change(new: RateLimits) -> None:
    """Half a million bytes would take six days. Time passes only in pauses, and the first of them lasts until it is ended."""
    clock, pausing = Clock(), threading.Event()

    def pause(stop: Cancellation, seconds: float) -> None:
        if seconds > 1:
            pausing.set()
            stop.wait(60.0)
        clock.pause(stop, seconds)

    allowances = Allowances(RateLimits(1), Pace(lambda: clock.now, pause))
    body = allowances.bound(source := memory()).open(described(source), ByteRange(0, len(DATA)), Cancellation())

    def change() -> None:
        pausing.wait(30.0)
        allowances.change(new)

    changer = threading.Thread(target=change)
    changer.start()
    left = len(DATA)
    while left:
        left -= body.readinto(memoryview(bytearray(left)))
    changer.join()
    body.close()
    assert clock.now - 1000 <= len(DATA) / 2_000_000 + 0.01


@pytest.mark.parametrize("by", ["abort", "cancel"])
def test_a_pause_is_ended_from_another_thread(by: str) -> None:
    source, cancel = memory(), Cancellation()
    pausing = threading.Event()

    def pause(stop: Cancellation, seconds: float) -> None:
        pausing.set()
        stop.wait(60.0)

    body = Allowances(RateLimits(1), Pace(pause=pause)).bound(source).open(described(source), ByteRange(0, len(DATA)), cancel)

    def end() -> None:
        pausing.wait(30.0)
        body.abort() if by == "abort" else cancel.cancel()

    ender = threading.Thread(target=end)
    ender.start()
    with pytest.raises(Cancelled):
        body.readinto(memoryview(bytearray(1000)))
    ender.join()
    body.close()


def test_who_leaves_owes_nothing_and_who_stands_behind_comes_forward() -> None:
    clock, pausing, leaving = Clock(), threading.Semaphore(0), Cancellation()

    def pause(stop: Cancellation, seconds: float) -> None:
        if seconds > 1:
            pausing.release()
            stop.wait(60.0)
        clock.pause(stop, seconds)

    allowance = Allowance(1000, Pace(lambda: clock.now, pause))
    allowance.spend(int(BURST_S * 1000), Cancellation())

    def ahead() -> None:
        with pytest.raises(Cancelled):
            allowance.spend(1_000_000, leaving)

    threads = [threading.Thread(target=ahead), threading.Thread(target=allowance.spend, args=(100, Cancellation()))]
    for thread in threads:
        thread.start()
        assert pausing.acquire(timeout=30)
    leaving.cancel()
    for thread in threads:
        thread.join()
    assert clock.now - 1000 == pytest.approx(0.1)


def test_sources_of_several_registries_spend_from_one_allowance() -> None:
    """As those of a cache's owner and of its callers do."""
    clock = Clock()
    allowances = Allowances(RateLimits(400_000), clock.pace())
    config = Config.load({"HOME": "/nowhere"})
    with FaultServer() as server:
        server.put("/f", DATA)
        uri, secrets = parse_uri(f"{server.endpoint}/f")
        for _ in range(2):
            registry = Registry(config, on_throttle=lambda origin: None, allowances=allowances)
            with registry.source(uri, secrets) as source:
                [file] = source.list(uri, Cancellation()).files
                assert read_whole(source, file) == DATA
            registry.close()
    assert clock.now - 1000 == pytest.approx(2 * len(DATA) / 400_000, abs=BURST_S)


def test_the_settings_of_both() -> None:
    config = Config.load(
        {"HOME": "/nowhere", "MODELCACHE_MAX_BYTES_PER_S": "10MiB", "MODELCACHE_ORIGIN_MAX_BYTES_PER_S": '{"h:8443": "1MiB", "g": 5}'}
    )
    assert config.rates == RateLimits(10 << 20, {"h:8443": 1 << 20, "g": 5})
    for text in ('{"https://h": 1}', '{"h": 0}', '{"h": "fast"}'):
        with pytest.raises(BadConfig, match="MODELCACHE_ORIGIN_MAX_BYTES_PER_S"):
            Config.load({"HOME": "/nowhere", "MODELCACHE_ORIGIN_MAX_BYTES_PER_S": text})
