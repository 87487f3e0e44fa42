"""Whose secrets a prewarm may use: rendered grants on a real API server, and models behind a real S3 server."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from modelcache.agent.client import AgentClient, Identity
from modelcache.errors import AccessDenied
from modelcache.k8s.grants import render_grant
from modelcache.testing.agents import RunningAgent
from modelcache.testing.azure_stand_in import CONTAINER, AzureStandIn
from modelcache.testing.fault_server import Call, FaultServer, Reply
from modelcache.testing.gcs_stand_in import BUCKET, TOKEN_PATH, GcsStandIn
from modelcache.testing.polling import until
from modelcache.testing.servers import SeaweedFS, WebHdfs
from modelcache.testing.servers.control_plane import ControlPlane
from modelcache.testing.servers.hub import HubServer
from modelcache.testing.servers.ports import LOOPBACK, free_ports
from tests.cluster.nodes import Node, following

pytestmark = pytest.mark.cluster

AZURES_KEY = "A" * 43 + "="
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


def googles_key(token_uri: str) -> str:
    """Of a service account, as the console writes it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    told = {"type": "service_account", "client_email": "reader@p.example", "token_uri": token_uri}
    return json.dumps(told | {"private_key": key.private_bytes(*form).decode(), "private_key_id": "1"})


def test_every_source_is_read_with_the_key_that_kserve_names_for_it(node: Node, tmp_path: Path) -> None:
    """One service account, whose secrets are of all kinds, as KServe attaches them; one of them is of no source here."""
    plane, mine = node.plane, node.plane.namespace()
    (tmp_path / "hdfs" / "m").mkdir(parents=True)
    (tmp_path / "hdfs" / "m" / "weights").write_bytes(b"of hdfs")
    with HubServer() as hub, FaultServer() as web, FaultServer() as google, FaultServer() as blobs, WebHdfs(tmp_path / "hdfs") as hdfs:
        azure = AzureStandIn(blobs, rights={AZURES_KEY: {"list", "get"}})
        azure.put("m/weights", b"of azure")
        repository = hub.repository("o/m", {"weights": b"of the hub"})
        token = hub.token()
        repository.private, repository.readers = True, {token}
        store = GcsStandIn(google, rights={"ya29.token-1-of-the-test": {"list", "get"}, "ya29.token-2-of-the-test": {"list", "get"}})
        store.put("m/weights", b"of google")
        web.put("/m/weights", b"of the web")

        def by_header(call: Call) -> None:
            known = call.received.headers.get("x-key") == "of-the-web"
            call.reply(web.reply_to(call.received) if known else Reply(401, {}, b""))

        web.fail("/m/weights", by_header)
        held = {
            "identity": {"AZURE_CLIENT_ID": "somebody", "AZURE_TENANT_ID": "workload"},
            "azure": {"AZURE_STORAGE_ACCESS_KEY": AZURES_KEY, "AZURE_SERVICE_URL": azure.endpoint, "AZURE_ACCOUNT_NAME": azure.account},
            "hdfs": {"HDFS_NAMENODE": f"http://{hdfs.authority}", "HEADERS": json.dumps({"X-Key": "of-the-web"})},
            "hub": {"HF_TOKEN": token},
            "web": {"https-host": web.endpoint.removeprefix("http://"), "headers": json.dumps({"X-Key": "of-the-web"})},
            "google": {"gcloud-application-credentials.json": googles_key(google.endpoint + TOKEN_PATH)},
        }
        for name, data in held.items():
            make_secret(plane, mine, name, data)
            accounts = ["reader"] if name == "hub" else []
            apply_grant(plane, mine, render_grant(name, mine, agent=(node.namespace, "modelcache-agent"), service_accounts=accounts))
        body: dict[str, Any] = {"metadata": {"name": "reader"}, "secrets": [{"name": name} for name in held]}
        plane.ask("POST", f"/api/v1/namespaces/{mine}/serviceaccounts", body)
        uris = {"hub": "hf://o/m", "web": f"{web.endpoint}/m/weights", "google": f"gs://{BUCKET}/m"}
        uris |= {"azure": f"az://{CONTAINER}/m", "hdfs": "hdfs://m"}
        who = {"namespace": mine, "serviceAccountName": "reader"}
        node.want(
            *({"modelName": name, "sourceModelUri": uri, **who} for name, uri in uris.items()),
            *({"modelName": f"{name}-of-nobody", "sourceModelUri": uri, "namespace": mine} for name, uri in uris.items()),
        )
        environ = {"HF_ENDPOINT": hub.endpoint, "MODELCACHE_GS_ENDPOINT": google.endpoint}
        with following(node, tmp_path, environ=environ) as running:
            settled = {"ModelDownloaded", "ModelDownloadError"}
            until(lambda: all(node.state(f"{mine}/{name}{of}") in settled for name in uris for of in ("", "-of-nobody")), "all ten")
            assert {name: node.told(f"{mine}/{name}").get("errorText") for name in uris} == dict.fromkeys(uris)
            refused = {name: node.told(f"{mine}/{name}-of-nobody")["errorCode"] for name in uris}
            assert refused == dict.fromkeys(uris, "access-denied") | {"azure": "bad-config"}  # no account is named
            found = {name: weights_of(running, mine, uri) for name, uri in uris.items()}
            whose = {"hub": b"of the hub", "web": b"of the web", "google": b"of google", "azure": b"of azure", "hdfs": b"of hdfs"}
            assert found == whose
    told = (tmp_path / "agent.log").read_text() + json.dumps(node.status())
    assert [secret for secret in (token, "of-the-web", "PRIVATE KEY", "ya29.", AZURES_KEY) if secret in told] == []


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
    body: dict[str, Any] = {"metadata": {"name": "reader"}, "secrets": [{"name": name} for name in ("not-granted", "gone", "s3-keys")]}
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

        for name in ("gone", "s3-keys"):
            apply_grant(plane, mine, render_grant(name, mine, agent=agents, service_accounts=["reader"]))
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
    with following(node, tmp_path, "--secrets-namespace", cluster, url=away, environ={"AWS_ENDPOINT_URL": away}) as running:
        assert [weights_of(running, namespace, uri) for namespace in (mine, "strangers")] == [b"w" * 10_000] * 2
    log = (tmp_path / "agent.log").read_text()
    assert reader.secret_key not in log + json.dumps(node.status())
