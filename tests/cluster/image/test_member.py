"""The whole of it: the image, run as deploy/ says, with the account and the rights that deploy/ gives, on a real API server."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from modelcache.k8s.names import AGENT, API, NODES, SYSTEM_NAMESPACE
from modelcache.testing.polling import until
from modelcache.testing.servers.control_plane import ControlPlane
from modelcache.testing.servers.ports import free_ports
from modelcache.units import MIB
from tests.cluster.deployed import deploy
from tests.cluster.image.conftest import Image
from tests.cluster.image.container import ADDRESS, Container
from tests.deploy.manifests import agents_pod, one

pytestmark = [pytest.mark.image, pytest.mark.cluster, pytest.mark.root, pytest.mark.timeout(600)]


def test_it_brings_what_its_localmodelnode_wants_and_says_so(image: Image, served: ControlPlane, host: Path) -> None:
    deploy(served)
    pod, node, port = agents_pod(), f"node-{secrets.token_hex(4)}", free_ports(1)[0]
    agent, api = pod["containers"][0], served.url.rpartition(":")
    agent["args"] = [text.replace(":9090", f":{port}") for text in agent["args"]]  # the network is the test's: the port is any
    agent["env"] = [*agent["env"], {"name": "NODE_NAME", "value": node}]
    account = {
        "token": served.service_account(SYSTEM_NAMESPACE, AGENT),
        "ca.crt": served.ca_file.read_text(),
        "namespace": SYSTEM_NAMESPACE,
    }
    environ = {"KUBERNETES_SERVICE_HOST": ADDRESS, "KUBERNETES_SERVICE_PORT": api[2]}
    path = f"{API}/{NODES}/{node}"
    with Container(
        image.rootfs,
        pod,
        host,
        config={"modelcache-agent": one("ConfigMap")["data"]},
        account=account,
        environ=environ,
        shares_network=True,
    ) as running:
        model = running.volume("tmp") / "model"
        model.mkdir()
        (model / "weights.safetensors").write_bytes(os.urandom(5 * MIB))
        wanted = {"localModels": [{"modelName": "one", "sourceModelUri": "file:///tmp/model"}]}
        served.ask(
            "POST",
            f"{API}/{NODES}",
            {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "LocalModelNode", "metadata": {"name": node}, "spec": wanted},
        )

        def told() -> str | None:
            assert running.running, running.log.read_text()
            found = (served.ask("GET", path).get("status") or {}).get("modelStatus") or {}
            return None if found.get("one") is None else str(found["one"])

        until(lambda: told() == "ModelDownloaded", "the node to have its model", deadline_s=100.0)
        assert running.terminate(float(pod["terminationGracePeriodSeconds"])) == 0
