"""What tests of an agent have in common: a client of the node's, and a web server to fetch from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modelcache.agent.client import AgentClient
from modelcache.testing.agents import RunningAgent
from modelcache.testing.fault_server import FaultServer


@pytest.fixture
def client(node: RunningAgent) -> Iterator[AgentClient]:
    """The administrator's, of the agent that the test's file starts."""
    with AgentClient(node.admin) as made:
        yield made


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """An origin of this test alone, with nothing in it."""
    with FaultServer() as made:
        yield made
