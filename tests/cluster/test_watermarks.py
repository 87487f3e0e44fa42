"""Kubelet's configuration by way of a real API server: where the agent may ask, and where it may not."""

from __future__ import annotations

import json
import os
import secrets
from http import HTTPStatus
from pathlib import Path

import pytest

from modelcache.agent.client import AgentClient
from modelcache.agent.watermarks import KUBELET, NONE
from modelcache.testing.agents import agent, watermarks_of
from modelcache.testing.fault_server import Call, FaultServer, Reply
from modelcache.testing.polling import until
from modelcache.testing.servers.certificates import Certificate
from modelcache.testing.servers.control_plane import ControlPlane

pytestmark = pytest.mark.cluster
ASK = [{"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["get"]}]
TOLD = {"kubeletconfig": {"evictionHard": {"nodefs.available": "20%"}, "imageGCHighThresholdPercent": 80}}


def test_kubelet_is_asked_through_the_api_server_by_who_may(served: ControlPlane, tmp_path: Path, certificate: Certificate) -> None:
    namespace, name, token = served.namespace(), f"node-{secrets.token_hex(4)}", tmp_path / "token"
    token.write_text(served.service_account(namespace, "agent"))

    disk = os.statvfs(tmp_path)
    sizes = {"node": {"fs": {"capacityBytes": 2 << 60}, "runtime": {"imageFs": {"capacityBytes": disk.f_blocks * disk.f_frsize}}}}

    def answer(call: Call) -> None:
        told = TOLD if call.received.target.startswith("/configz") else sizes
        call.reply(Reply(HTTPStatus.OK, {"Content-Type": "application/json"}, json.dumps(told).encode()))

    with FaultServer(certificate) as kubelet:
        for path in ("/configz", "/stats/summary"):
            kubelet.fail(path, answer)
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
        served.ask("POST", "/api/v1/nodes", node)
        addresses = [{"type": "InternalIP", "address": "127.0.0.1"}]
        port = int(kubelet.endpoint.rpartition(":")[2])
        node |= {"status": {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}}
        served.ask("PATCH", f"/api/v1/nodes/{name}/status", node, content="application/merge-patch+json")
        place = ["--api-server", served.url, "--api-ca", str(served.ca_file), "--api-token", str(token)]
        options = [*place, "--node-name", name, "--pods-dir", str(tmp_path), "--kubelet-configz", "proxy"]
        with agent(tmp_path, options=options) as running, AgentClient(running.admin) as client:
            until(lambda: "403 Forbidden" in (watermarks_of(client).why or ""), "the refusal")
            assert (watermarks_of(client).source, watermarks_of(client).high) == (NONE, 1.0)
        assert kubelet.received == []
        served.allow(f"system:serviceaccount:{namespace}:agent", ASK)
        with agent(tmp_path, options=options) as running, AgentClient(running.admin) as client:
            until(lambda: watermarks_of(client).source == KUBELET, "what kubelet told")
            assert list(watermarks_of(client).thresholds) == ["nodefs.available=20%", "imageGCHighThresholdPercent=80"]
            assert round(watermarks_of(client).high, 6) == 0.78
    served.ask("DELETE", f"/api/v1/nodes/{name}")
