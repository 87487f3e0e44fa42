"""`modelcache rates` against a real agent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modelcache.agent.client import AgentClient
from modelcache.cli.main import main
from modelcache.sources.throttled import RateLimits
from modelcache.testing.agents import RunningAgent, agent
from modelcache.units import MIB
from tests.cli.executable import Done
from tests.cli.test_json_documents import documented, keys


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with agent(tmp_path_factory.mktemp("r"), {"MODELCACHE_MAX_BYTES_PER_S": "300MiB"}) as running:
        yield running


def test_rates_are_shown_and_changed_one_by_one(node: RunningAgent, capsys: pytest.CaptureFixture[str]) -> None:
    def rates(*arguments: str) -> Done:
        code = main(["--agent", str(node.admin), "rates", *arguments])
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    with AgentClient(node.admin) as client:

        def now() -> RateLimits:
            return client.status(brief=True).rates

        assert rates().out.splitlines() == ["all origins: 300.0 MiB/s"]
        document = rates("--json", "--of", "A.example=1MiB", "--of", "b.example:81=2MiB").document
        assert set(keys(document)) == documented("rates")
        assert now() == RateLimits(300 * MIB, {"a.example": MIB, "b.example:81": 2 * MIB})
        assert rates("200MiB", "--of", "a.example=none").out.splitlines() == ["all origins: 200.0 MiB/s", "b.example:81: 2.0 MiB/s"]
        assert rates("none").out.splitlines() == ["all origins: no bound", "b.example:81: 2.0 MiB/s"]
        for wrong in (["fast"], ["0"], ["--of", "a.example"], ["--of", "=1MiB"], ["--of", "https://a.example/=1MiB"], ["-1"]):
            assert rates(*wrong).code == 2, wrong
        assert now() == RateLimits(None, {"b.example:81": 2 * MIB})
        client.set_rates(RateLimits(None, {"B.Example:81": 2 * MIB}))
        assert rates("--of", "b.example:81=none").out.splitlines() == ["all origins: no bound"]
    assert main(["--agent", "none", "rates"]) == 2
