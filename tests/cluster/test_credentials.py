"""Whose secrets a prewarm may use: rendered grants on a real API server, and models behind a real S3 server."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from modelcache.agent.client import AgentClient, Identity
from modelcache.errors import AccessDenied
from modelcache.k8s.grants import render_grant
from modelcache.testing.agents import RunningAgent
from modelcache.testing.polling import until
from modelcache.testing.servers import SeaweedFS
from modelcache.testing.servers.control_plane import ControlPlane
from modelcache.testing.servers.ports import LOOPBACK, free_ports
from tests.cluster.nodes import Node, following

pytestmark = pytest.mark.cluster

RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces"


def make_secret(plane: ControlPlane, namespace: str, name: str, data: dict[str, str], annotations: dict[str, str] | None = None) -> None:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    metadata = {"name": name, "annotations": annotations or {}}
    plane.ask("POST", f"/api/v1/namespaces/{namespace}/secrets", {"metadata": metadata, "data": encoded})


def apply_grant(plane: ControlPlane, namespace: str, text: str) -> None:
    role, binding = text.split("---\n")
    plane.create(f"{RBAC}/{namespace}/roles", role)
    plane.create(f"{RBAC}/{namespace}/rolebindings", binding)


def test_a_grant_opens_one_secret_and_nothing_else(node: Node) -> None:
    plane, namespace = node.plane, node.plane.namespace()
    token = node.token_file.read_text()
    for name in ("n", "other"):
        make_secret(plane, namespace, name, {"HF_TOKEN": "t"})
    path = f"/api/v1/namespaces/{namespace}/secrets"
    assert plane.try_ask("GET", f"{path}/n", token=token)[0] == 403
    apply_grant(plane, namespace, render_grant("n", namespace, agent=(node.namespace, "modelcache-agent"), service_accounts=["reader"]))
    plane.service_account(namespace, "reader")
    until(lambda: plane.try_ask("GET", f"{path}/n", token=token)[0] == 200, "the grant to be in force")
    assert plane.try_ask("GET", f"/api/v1/namespaces/{namespace}/serviceaccounts/reader", token=token)[0] == 200
    for method, where in (
        ("GET", f"{path}/other"),
        ("GET", path),
        ("GET", f"/api/v1/namespaces/{node.namespace}/secrets/n"),
        ("DELETE", f"{path}/n"),
        ("PATCH", f"{path}/n"),
        ("GET", f"/api/v1/namespaces/{namespace}/serviceaccounts/other"),
    ):
        assert plane.try_ask(method, where, {} if method == "PATCH" else None, token=token)[0] == 403, (method, where)


def weights_of(running: RunningAgent, namespace: str, uri: str) -> bytes:
    """What a pod without any credential reads."""
    with AgentClient(running.driver) as driver:
        return (driver.ensure(uri, identity=Identity(namespace, "default", {})).snapshot.path / "weights").read_bytes()


def test_a_prewarm_has_the_credential_of_its_cache_alone(node: Node, seaweedfs: SeaweedFS, bucket: str, tmp_path: Path) -> None:
    plane, mine, cluster = node.plane, node.plane.namespace(), node.plane.namespace()
    seaweedfs.put(bucket, "m/weights", b"w" * 10_000)
    uri, reader, agents = f"s3://{bucket}/m", seaweedfs.reader, (node.namespace, "modelcache-agent")
    keys = {"AWS_ACCESS_KEY_ID": reader.access_key, "AWS_SECRET_ACCESS_KEY": reader.secret_key, "somebody-elses": "x"}
    place = {
        "serving.kserve.io/s3-endpoint": seaweedfs.endpoint.removeprefix("http://"),
        "serving.kserve.io/s3-usehttps": "0",
        "serving.kserve.io/s3-region": "us-east-1",
    }
    make_secret(plane, mine, "s3-keys", keys, place)
    body: dict[str, Any] = {"metadata": {"name": "reader"}, "secrets": [{"name": "not-granted"}, {"name": "s3-keys"}]}
    plane.ask("POST", f"/api/v1/namespaces/{mine}/serviceaccounts", body)
    entry = {"type": "s3", "endpoint_url": seaweedfs.endpoint, "access_key_id": "wrong", "secret_access_key": reader.secret_key}
    make_secret(plane, cluster, "storage-config", {"minio": json.dumps(entry)})
    apply_grant(plane, cluster, render_grant("storage-config", cluster, agent=agents))

    namespaced = {"modelName": "m", "sourceModelUri": uri, "namespace": mine, "serviceAccountName": "reader"}
    nobodys = {"modelName": "nobodys", "sourceModelUri": uri, "namespace": mine}
    storage = {"key": "minio", "parameters": {"access_key_id": reader.access_key, "region": "us-east-1"}}
    shared = {"modelName": "shared", "sourceModelUri": uri, "storage": storage}
    node.want(namespaced, nobodys)
    environ = {"AWS_ENDPOINT_URL": seaweedfs.endpoint, "AWS_REGION": "us-east-1"}  # where, for who doesn't say; and nobody's keys
    with following(node, tmp_path, "--secrets-namespace", cluster, environ=environ) as running, AgentClient(running.admin) as client:
        key = f"{mine}/m"
        until(lambda: node.told(key).get("errorCode") == "access-denied", "the refusal")
        assert f"modelcache grant SECRET --service-account reader -n {mine}" in node.told(key)["errorText"]
        until(lambda: node.told(f"{mine}/nobodys").get("errorCode") == "access-denied", "the origin's refusal")
        assert client.list() == []

        apply_grant(plane, mine, render_grant("s3-keys", mine, agent=agents, service_accounts=["reader"]))
        until(lambda: node.state(key) == "ModelDownloaded", "the model, once its secret may be read")
        assert weights_of(running, mine, uri) == b"w" * 10_000  # its pods prove nothing: the cache is theirs
        with pytest.raises(AccessDenied):
            weights_of(running, "strangers", uri)
        node.want(namespaced, nobodys, shared)
        until(lambda: node.state("shared") == "ModelDownloaded", "the cluster cache, with an entry of the storage secret")
        assert node.state(f"{mine}/nobodys") == "ModelDownloadError"
        assert node.told("shared")["digest"] == node.told(key)["digest"]
        assert weights_of(running, "strangers", uri) == b"w" * 10_000

    # nobody to ask: neither the API server nor, for want of its address, the origin
    away = f"http://{LOOPBACK}:{free_ports(1)[0]}"
    with following(node, tmp_path, url=away, environ={"AWS_ENDPOINT_URL": away}) as running:
        assert [weights_of(running, namespace, uri) for namespace in (mine, "strangers")] == [b"w" * 10_000] * 2
    log = (tmp_path / "agent.log").read_text()
    assert reader.secret_key not in log + json.dumps(node.status())
