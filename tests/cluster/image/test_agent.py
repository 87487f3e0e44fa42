"""The agent's container as deploy/ says it: user, capabilities, seccomp, read-only root, mounts, probes, end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelcache.testing.servers import Certificate
from modelcache.units import MIB
from tests.cluster.image.conftest import PODS, Image, mounted
from tests.cluster.image.container import ADDRESS, Container, Refused
from tests.deploy.manifests import agents_pod, one

pytestmark = [pytest.mark.image, pytest.mark.root, pytest.mark.timeout(600)]


def answer(path: str) -> list[str]:
    """The command that asks a probe's question."""
    pod = agents_pod()["containers"][0]
    (port,) = [each["containerPort"] for each in pod["ports"] if each["name"] == "http"]
    question = f"import urllib.request as u; print(u.urlopen('http://{ADDRESS}:{port}{path}', timeout=5).read().decode())"
    return ["python", "-c", question]


def test_it_starts_serves_sees_mounts_of_the_host_and_ends_within_its_grace(image: Image, host: Path, certificate: Certificate) -> None:
    pod, config = agents_pod(), {"modelcache-agent": one("ConfigMap")["data"]}
    away = {"KUBERNETES_SERVICE_HOST": ADDRESS, "KUBERNETES_SERVICE_PORT": "1"}  # nobody answers there: all that is here is served
    account = {"token": "no-token", "ca.crt": certificate.ca.read_text(), "namespace": "modelcache-system"}
    probes = {kind: pod["containers"][0][kind]["httpGet"]["path"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
    with Container(image.rootfs, pod, host, config=config, account=account, environ=away) as agent:
        for path in probes.values():
            assert agent.wait_for(*answer(path)) == "ok\n\n"
        assert "modelcache_agent_info" in agent.do(*answer("/metrics"))

        model = agent.volume("tmp") / "model"
        model.mkdir()
        (model / "weights.safetensors").write_bytes(os.urandom(5 * MIB))
        uri = "file:///tmp/model"
        agent.do("modelcache", "pull", uri)
        (snapshot,) = (host / "var/lib/modelcache/snapshots").iterdir()
        volume = host / PODS / "user" / "volumes" / "model" / "mount"
        volume.mkdir(parents=True)
        with mounted("--bind", snapshot, volume):
            with pytest.raises(Refused, match=r"mount:"):
                agent.do("modelcache", "rm", uri)
            assert snapshot.is_dir()
        agent.do("modelcache", "rm", uri)
        assert not snapshot.exists()

        status = (host / "var/lib/modelcache/format").stat()
        assert (status.st_uid, (host / "run/modelcache/agent.sock").stat().st_mode & 0o777) == (0, 0o600)
        assert agent.terminate(float(pod["terminationGracePeriodSeconds"])) == 0
