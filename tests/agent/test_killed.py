"""The agent killed at random instants while clients fetch, hold and evict: no wrong byte, no lost lease, every byte accounted for."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from modelcache.abc.store import Lease
from modelcache.agent.client import AgentClient
from modelcache.cache import ModelCache
from modelcache.errors import AgentUnreachable, InUse, NotCached
from modelcache.store.store import LocalStore
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.audit import Moment, audit
from modelcache.testing.crash_bench import LATER_S, NO_LIMITS
from modelcache.testing.servers import Nginx
from modelcache.testing.store_filling import content
from modelcache.units import MIB
from tests.faults.chance import seed_of, soak_rounds

ROUNDS = 10
MODELS = 4
CLIENTS = 3
WITHIN_S = 0.6
SHARED = content(3 * MIB + 7, seed=1)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    directory = tmp_path_factory.mktemp("origin")
    for number in range(MODELS):
        (directory / f"m{number}.bin").write_bytes(content(5 * MIB + number, seed=number) + SHARED)
    with Nginx(directory) as server:
        yield server


class Rounds:
    """One store, served by one agent after the other."""

    def __init__(self, directory: Path, origin: Nginx, seed: int) -> None:
        self._directory = directory
        self._uris = [f"{origin.endpoint}/m{number}.bin" for number in range(MODELS)]
        self._expected = [content(5 * MIB + number, seed=number) + SHARED for number in range(MODELS)]
        self._seed = seed
        self._random = random.Random(seed)
        self._leases: dict[str, Lease] = {}
        self._lock = threading.Lock()

    def play(self, number: int) -> None:
        with agent(self._directory) as running:
            self._expect_leases(running)
            with ThreadPoolExecutor(CLIENTS) as threads:
                works = [threads.submit(self._work, running, random.Random(f"{self._seed} {number} {each}")) for each in range(CLIENTS)]
                [pid] = running.process.pids()
                with suppress(psutil.TimeoutExpired):
                    psutil.Process(pid).wait(self._random.uniform(0.05, WITHIN_S))
                running.end(signal.SIGKILL)
                for work in works:
                    work.result()
        root = self._directory / "store"
        assert audit(root, Moment.CRASHED) == []
        with ModelCache(root) as cache:
            held = {lease.id for lease in cache.leases()}
            assert self._leases.keys() <= held
            for uri, expected in zip(self._uris, self._expected, strict=True):
                with suppress(NotCached):
                    assert (cache.find(uri).path / uri.rpartition("/")[2]).read_bytes() == expected

    def settle(self) -> None:
        """Nobody is at work any more: nothing is left over."""
        root = self._directory / "store"
        for lease in self._leases.values():
            LocalStore(root, NO_LIMITS).release(lease.id)
        LocalStore(root, NO_LIMITS, clock=lambda: 4e9 + LATER_S).collect()
        assert audit(root, Moment.SETTLED) == []

    def _expect_leases(self, running: RunningAgent) -> None:
        with AgentClient(running.admin) as client:
            held = {lease.id for info in client.list() for lease in info.leases}
        assert self._leases.keys() <= held

    def _work(self, running: RunningAgent, chance: random.Random) -> None:
        """Fetch, hold, let go and evict until the agent is gone."""
        with AgentClient(running.admin) as client, suppress(AgentUnreachable):
            while True:
                number = chance.randrange(MODELS)
                uri = self._uris[number]
                match chance.choice(["ensure", "ensure", "hold", "release", "evict"]):
                    case "ensure":
                        client.ensure(uri)
                    case "hold":
                        had = client.ensure(uri, lease=("pod", 3600.0))
                        assert had.lease is not None
                        with self._lock:
                            self._leases[had.lease.id] = had.lease
                        assert (had.snapshot.path / uri.rpartition("/")[2]).read_bytes() == self._expected[number]
                    case "release":
                        self._release_one(client)
                    case "evict":
                        with suppress(InUse, NotCached):
                            client.evict(uri)

    def _release_one(self, client: AgentClient) -> None:
        with self._lock:
            lease_id = next(iter(self._leases), None)
            if lease_id is not None:
                del self._leases[lease_id]  # whether or not the answer comes
        if lease_id is not None:
            client.release(lease_id)


def test_an_agent_killed_at_random_instants(tmp_path: Path, origin: Nginx, pytestconfig: pytest.Config) -> None:
    rounds = Rounds(tmp_path, origin, seed_of(pytestconfig))
    for number in range(ROUNDS):
        rounds.play(number)
    rounds.settle()


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_an_agent_killed_at_very_many_random_instants(tmp_path: Path, origin: Nginx, pytestconfig: pytest.Config) -> None:
    rounds = Rounds(tmp_path, origin, seed_of(pytestconfig))
    for number in range(soak_rounds(500)):
        rounds.play(number)
    rounds.settle()
