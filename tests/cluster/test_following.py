"""A real agent that follows its LocalModelNode on a real API server."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelcache.agent.client import AgentClient
from modelcache.k8s.names import API, NODES
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.servers import Nginx
from modelcache.testing.servers.control_plane import ControlPlane
from tests.cluster.conftest import until

pytestmark = pytest.mark.cluster

RULES = [
    {"apiGroups": ["serving.kserve.io"], "resources": [NODES], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["serving.kserve.io"], "resources": [f"{NODES}/status"], "verbs": ["patch"]},
]


@dataclass(frozen=True)
class Node:
    """A LocalModelNode and what follows it."""

    plane: ControlPlane
    name: str
    token_file: Path

    @property
    def path(self) -> str:
        return f"{API}/{NODES}/{self.name}"

    def want(self, *models: dict[str, Any]) -> None:
        status, _ = self.plane.try_ask("PATCH", self.path, {"spec": {"localModels": list(models)}})
        if status == 404:
            made = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "LocalModelNode", "metadata": {"name": self.name}}
            self.plane.ask("POST", f"{API}/{NODES}", made | {"spec": {"localModels": list(models)}})

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.plane.ask("GET", self.path).get("status") or {}
        return found

    def state(self, key: str) -> str | None:
        return (self.status().get("modelStatus") or {}).get(key)

    def told(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = (self.status().get("models") or {}).get(key) or {}
        return found

    def options(self, url: str | None = None) -> list[str]:
        ca = ["--api-ca", str(self.plane.ca_file)] if url is None else []
        return ["--node-name", self.name, "--api-server", url or self.plane.url, *ca, "--api-token", str(self.token_file)]


@pytest.fixture
def node(served: ControlPlane, tmp_path: Path) -> Node:
    """Of this test, with an agent's rights and no others."""
    namespace, token_file = served.namespace(), tmp_path / "token"
    token_file.write_text(served.service_account(namespace, "modelcache-agent"))
    served.allow(f"system:serviceaccount:{namespace}:modelcache-agent", RULES)
    return Node(served, f"node-{secrets.token_hex(4)}", token_file)


@pytest.fixture
def origin(nginx: Nginx) -> Path:
    name = secrets.token_hex(6)
    directory = nginx.directory / name
    directory.mkdir()
    return directory


def model_of(nginx: Nginx, directory: Path, name: str, data: bytes) -> dict[str, Any]:
    (directory / name).write_bytes(data)
    return {"modelName": name.partition(".")[0], "sourceModelUri": f"{nginx.endpoint}/{directory.name}/{name}"}


@contextmanager
def following(node: Node, directory: Path, *options: str, url: str | None = None) -> Iterator[RunningAgent]:
    with agent(directory, options=[*node.options(url), *options]) as running:
        yield running


def test_the_node_is_made_to_match_and_says_so(node: Node, nginx: Nginx, origin: Path, tmp_path: Path) -> None:
    one, two = model_of(nginx, origin, "one.bin", b"1" * 100_000), model_of(nginx, origin, "two.bin", b"2" * 50_000)
    node.want(one | {"nodeGroup": "g"})
    with following(node, tmp_path) as running, AgentClient(running.admin) as client:
        until(lambda: node.state("one") == "ModelDownloaded", "the first model")
        told = node.told("one")
        assert (told["bytesDone"], told["bytesTotal"]) == (100_000, 100_000)
        assert told["startedAt"] <= told["finishedAt"]
        [snapshot] = client.list()
        assert told["digest"] == str(snapshot.digest)
        assert told["revision"]
        assert [lease.holder for lease in snapshot.leases] == ["cluster:one"]

        node.want(one, two)
        until(lambda: node.state("two") == "ModelDownloaded", "the second model")
        assert node.status()["copies"] == {"available": 2, "total": 2, "failed": 0}
        assert node.status()["observedGeneration"] == 2
        assert node.told("one") == told

        node.want(two)
        until(lambda: [str(each.digest) for each in client.list()] == [node.told("two")["digest"]], "the first model to go")
        until(lambda: list(node.status()["modelStatus"]) == ["two"], "the status without it")
