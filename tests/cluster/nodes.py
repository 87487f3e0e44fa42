"""A node of the tests: its LocalModelNode, and a real agent that follows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelcache.k8s.names import API, NODES
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.servers import Nginx
from modelcache.testing.servers.control_plane import ControlPlane
from tests.deploy.manifests import one

RULES: list[dict[str, Any]] = one("ClusterRole")["rules"]
"""What the manifests let an agent do, and no more."""

ANNOTATE = {"apiGroups": ["serving.kserve.io"], "resources": [NODES], "verbs": ["patch"]}


@dataclass(frozen=True)
class Node:
    """A LocalModelNode and what follows it; the agent's service account is in `namespace`."""

    plane: ControlPlane
    namespace: str
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


def model_of(nginx: Nginx, directory: Path, name: str, data: bytes) -> dict[str, Any]:
    (directory / name).write_bytes(data)
    return {"modelName": name.partition(".")[0], "sourceModelUri": f"{nginx.endpoint}/{directory.name}/{name}"}


@contextmanager
def following(
    node: Node, directory: Path, *options: str, url: str | None = None, environ: Mapping[str, str] | None = None
) -> Iterator[RunningAgent]:
    """An agent that follows the node, through `url` if it isn't the API server's own."""
    with agent(directory, environ, options=[*node.options(url), *options]) as running:
        yield running
