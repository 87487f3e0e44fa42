"""Kubelet's configuration by way of a real API server: where the agent may ask, and where it may not."""

from __future__ import annotations

import json
import secrets
from http import HTTPStatus
from pathlib import Path

import pytest

from modelcache.agent.client import AgentClient
from modelcache.agent.watermarks import KUBELET, NONE, Watermarks
from modelcache.testing.agents import agent
from modelcache.testing.fault_server import Call, FaultServer, Reply
from modelcache.testing.polling import until
from modelcache.testing.servers.certificates import Certificate
from modelcache.testing.servers.control_plane import ControlPlane

pytestmark = pytest.mark.cluster
ASK = [{"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["get"]}]
TOLD = {"kubeletconfig": {"evictionHard": {"nodefs.available": "20%"}, "imageGCHighThresholdPercent": 100}}


def test_kubelet_is_asked_through_the_api_server_by_who_may(served: ControlPlane, tmp_path: Path, certificate: Certificate) -> None:
    namespace, name, token = served.namespace(), f"node-{secrets.token_hex(4)}", tmp_path / "token"
    token.write_text(served.service_account(namespace, "agent"))

    def answer(call: Call) -> None:
        call.reply(Reply(HTTPStatus.OK, {"Content-Type": "application/json"}, json.dumps(TOLD).encode()))

    with FaultServer(certificate) as kubelet:
        kubelet.fail("/configz", answer)
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
        served.ask("POST", "/api/v1/nodes", node)
        addresses = [{"type": "InternalIP", "address": "127.0.0.1"}]
        port = int(kubelet.endpoint.rpartition(":")[2])
        node |= {"status": {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}}
        served.ask("PATCH", f"/api/v1/nodes/{name}/status", node, content="application/merge-patch+json")
        place = ["--api-server", served.url, "--api-ca", str(served.ca_file), "--api-token", str(token)]
        options = [*place, "--node-name", name, "--pods-dir", str(tmp_path), "--kubelet-configz", "proxy"]

        def marks(client: AgentClient) -> Watermarks:
            found = client.status(brief=True).watermarks
            assert found is not None
            return found

        with agent(tmp_path, options=options) as running, AgentClient(running.admin) as client:
            until(lambda: "403 Forbidden" in (marks(client).why or ""), "the refusal")
            assert (marks(client).source, marks(client).high) == (NONE, 1.0)
        assert kubelet.received == []
        served.allow(f"system:serviceaccount:{namespace}:agent", ASK)
        with agent(tmp_path, options=options) as running, AgentClient(running.admin) as client:
            until(lambda: marks(client).source == KUBELET, "what kubelet told")
            assert list(marks(client).thresholds) == ["nodefs.available=20%"]
            assert round(marks(client).high, 6) == 0.78
    served.ask("DELETE", f"/api/v1/nodes/{name}")
