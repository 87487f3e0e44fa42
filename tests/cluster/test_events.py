"""Events that a real agent leaves on a real API server."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from modelcache.agent.client import AgentClient
from modelcache.k8s.names import API, NODES
from modelcache.testing.agents import agent
from modelcache.testing.crash import flip_bit
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.polling import until
from modelcache.testing.servers.control_plane import ControlPlane
from tests.cluster.nodes import RULES

pytestmark = pytest.mark.cluster


def test_damage_and_its_repair_are_events_of_the_node(served: ControlPlane, tmp_path: Path) -> None:
    namespace, name, token = served.namespace(), f"node-{secrets.token_hex(4)}", tmp_path / "token"
    token.write_text(served.service_account(namespace, "agent"))
    served.allow(f"system:serviceaccount:{namespace}:agent", RULES)
    node = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "LocalModelNode", "metadata": {"name": name}, "spec": {"localModels": []}}
    uid = served.ask("POST", f"{API}/{NODES}", node)["metadata"]["uid"]
    cluster = ["--node-name", name, "--api-server", served.url, "--api-ca", str(served.ca_file), "--api-token", str(token)]
    scrub = ["--scrub-every", "0.05", "--scrub-per-day", "1TiB", "--scrub-rate", "1GiB"]

    def events() -> dict[str, dict[str, Any]]:
        found = served.ask("GET", f"/api/v1/namespaces/default/events?fieldSelector=involvedObject.uid={uid}")["items"]
        return {each["reason"]: each for each in found}

    with FaultServer() as server, agent(tmp_path, options=[*cluster, *scrub]) as running, AgentClient(running.admin) as client:
        server.put("/private-model/weights", b"w" * 300_000)
        had = client.ensure(f"{server.endpoint}/private-model/weights", lease=("volume-7", 600.0))
        file = had.snapshot.path / "weights"
        file.chmod(0o644)
        flip_bit(file, 1000)
        until(lambda: {"DamageFound", "Quarantined", "DamageRepaired", "ReplacedUnderHolders"} <= events().keys(), "the events")
    told = events()

    assert (told["DamageFound"]["type"], told["DamageRepaired"]["type"]) == ("Warning", "Normal")
    assert told["DamageFound"]["involvedObject"]["kind"] == "LocalModelNode"
    assert "volume-7" in told["ReplacedUnderHolders"]["message"]
    assert (running.root / "quarantine" / told["Quarantined"]["message"].rpartition("/")[2]).stat().st_size == 300_000
    assert "private-model" not in str(told)
