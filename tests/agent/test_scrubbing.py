"""The agent reads back what the disk keeps, within its budget, and puts right what is damaged."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonset.announcing import Announcement
from daemonset.metrics import Metrics
from daemonset.scrubbing import DAY_S, Credit, Scrubber, ScrubBudget
from daemonset.server import Agent, Sockets
from modelcache.agent.client import AgentClient
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.patience import Cancellation
from modelcache.testing.agents import agent
from modelcache.testing.crash import flip_bit
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.store_fixtures import NO_LIMITS
from tests.agent.test_seen import samples

DEADLINE_S = 60.0


@given(
    per_day=st.integers(1, 1 << 45),
    every_s=st.floats(0.1, DAY_S),
    blobs=st.lists(st.integers(1, 1 << 40), min_size=1, max_size=50),
)
def test_a_day_s_budget_is_kept_whatever_the_sizes(per_day: int, every_s: float, blobs: list[int]) -> None:
    credit = Credit(ScrubBudget(per_day, 1, every_s))
    read = 0
    for parts, blob in enumerate(blobs, 1):
        allowed = credit.grown()
        assert 0 <= allowed <= per_day
        if allowed:
            credit.spend(blob)  # of which the last may be larger than what was left
            assert read <= per_day * every_s / DAY_S * parts + 1  # a byte for rounding
            read += blob


def test_damage_is_found_and_repaired_without_being_asked_for(tmp_path: Path) -> None:
    options = ["--scrub-every", "0.05", "--scrub-per-day", "1TiB", "--scrub-rate", "1GiB"]
    with FaultServer() as server, agent(tmp_path, options=options) as node, AgentClient(node.admin) as client:
        server.put("/m/weights", b"w" * 300_000)
        snapshot = client.ensure(f"{server.endpoint}/m/weights").snapshot
        file = snapshot.path / "weights"
        file.chmod(0o644)
        flip_bit(file, 1000)
        until, found = threading.Event(), samples(node)
        timer = threading.Timer(DEADLINE_S, until.set)
        timer.start()
        while not found.get(("modelcache_repairs_total", "repaired")) and not until.wait(0.02):
            found = samples(node)
        timer.cancel()
        assert found["modelcache_repairs_total", "repaired"] == 1
        assert found["modelcache_damages_total", ""] >= 1
        assert found["modelcache_read_back_bytes_total", ""] >= 300_000
        assert (client.ensure(f"{server.endpoint}/m/weights").snapshot.path / "weights").read_bytes() == b"w" * 300_000
        assert client.drain(5.0) == 0


def test_what_somebody_finds_is_announced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Announcement] = []
    monkeypatch.setattr(Agent, "_announcer", lambda *_: said.append)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights").write_bytes(b"w" * 300_000)
    config = Config.load({"HOME": "/nonexistent"}, root=tmp_path / "store", limits=NO_LIMITS)
    with Agent(config, Sockets(tmp_path / "a.sock"), grace_s=1.0), AgentClient(tmp_path / "a.sock") as client:
        file = client.ensure(f"file://{tmp_path}/m").snapshot.path / "weights"
        file.chmod(0o644)
        flip_bit(file, 1000)
        assert len(client.verify().damages) == 1
    assert [each.reason for each in said] == ["DamageFound", "Quarantined"]
    aside = said[1].message.rpartition("quarantine/")[2]
    assert (tmp_path / "store" / "quarantine" / aside).stat().st_size == 300_000
    assert str(tmp_path) not in str(said)


@pytest.mark.parametrize("budget", [ScrubBudget(), ScrubBudget(bytes_per_s=1, every_s=0.001, bytes_per_day=1 << 60), ScrubBudget(0)])
def test_a_drain_ends_it_at_once(tmp_path: Path, budget: ScrubBudget) -> None:
    """Whether it waits for its next part, reads a byte a second, or is off."""
    with FaultServer() as server, ModelCache(config=Config.load({"HOME": str(tmp_path)}, root=tmp_path / "s", limits=NO_LIMITS)) as cache:
        server.put("/m/weights", b"w" * 100_000)
        cache.ensure(f"{server.endpoint}/m/weights")
        ending = Cancellation()
        with Scrubber(cache, Metrics(cache), budget, ending):
            ending.cancel()
        assert not [each for each in threading.enumerate() if each.name == "agent scrub"]
