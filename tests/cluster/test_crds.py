"""The custom resource definitions, as a real API server takes them."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest

from modelcache.k8s import crds
from modelcache.k8s.names import API
from modelcache.testing.servers.control_plane import ControlPlane

pytestmark = pytest.mark.cluster

CACHE = {
    "sourceModelUri": "s3://models/llama",
    "modelSize": "10Gi",
    "nodeGroups": ["gpus"],
    "serviceAccountName": "reader",
    "storage": {"key": "minio", "parameters": {"region": "eu-1"}},
}
STATUSES: dict[str, dict[str, Any]] = {
    "localmodelcaches": {
        "copies": {"available": 1, "total": 2, "failed": 0},
        "nodeStatus": {"one": "NodeDownloaded", "two": "NodeDownloading"},
        "inferenceServices": [{"name": "chat", "namespace": "a"}],
        "llmInferenceServices": [{"name": "llm", "namespace": "a"}],
        "nodes": [{"name": "two", "errorCode": "no-space", "errorText": "full"}],
    },
    "localmodelnodes": {"modelStatus": {"a/llama": "ModelDownloaded"}, "models": {"a/llama": {"bytesDone": 1 << 40}}},
}


def _path(plural: str, namespace: str = "") -> str:
    return f"{API}/namespaces/{namespace}/{plural}" if namespace else f"{API}/{plural}"


def _named(spec: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"apiVersion": "serving.kserve.io/v1alpha1", "kind": kind, "metadata": {"name": f"t-{secrets.token_hex(4)}"}, "spec": spec}


def test_the_four_are_served_with_short_names_and_columns(served: ControlPlane) -> None:
    found = {each["name"]: each for each in served.ask("GET", API)["resources"]}
    short = {name: found[name]["shortNames"] for name in crds.NAMES}
    assert short == dict(zip(crds.NAMES, (["lmc"], ["lmnc"], ["lmng"], ["lmn"]), strict=True))
    assert {name for name in found if name.endswith("/status")} == {f"{name}/status" for name in crds.NAMES if "groups" not in name}
    assert found["localmodelnamespacecaches"]["namespaced"]
    assert not found["localmodelcaches"]["namespaced"]


def test_what_kubectl_shows_of_them(served: ControlPlane) -> None:
    namespace, name = served.namespace(), f"t-{secrets.token_hex(4)}"
    node = _named(
        {"localModels": [{"modelName": "m", "sourceModelUri": "s3://b/m"}, {"modelName": "n", "sourceModelUri": "s3://b/n"}]},
        "LocalModelNode",
    )
    states = {"m": "ModelDownloaded", "n": "ModelDownloading"}
    group = {"storageLimit": "5Ti", "persistentVolumeSpec": {}, "persistentVolumeClaimSpec": {}}
    made = (
        (_path("localmodelcaches"), _named(CACHE, "LocalModelCache"), {"copies": {"available": 1, "total": 3, "failed": 2}}),
        (
            _path("localmodelnamespacecaches", namespace),
            _named(CACHE, "LocalModelNamespaceCache"),
            {"copies": {"available": 0, "total": 1}},
        ),
        (_path("localmodelnodes"), node, {"copies": {"available": 1, "total": 2, "failed": 0}, "modelStatus": states}),
        (_path("localmodelnodegroups"), _named(group, "LocalModelNodeGroup"), None),
    )
    shown = {}
    for path, body, status in made:
        body["metadata"]["name"] = name
        served.ask("POST", path, body)
        if status is not None:
            served.ask("PATCH", f"{path}/{name}/status", {"status": status})
        columns, rows = served.table(f"{path}?fieldSelector=metadata.name={name}")
        [cells] = rows
        assert (columns[0], columns[-1]) == ("Name", "Age")
        shown[body["kind"]] = dict(zip(columns[1:-1], cells[1:-1], strict=True))
    assert shown == {
        "LocalModelCache": {"URI": "s3://models/llama", "Available": 1, "Total": 3, "Failed": 2, "Size": "10Gi", "Groups": '["gpus"]'},
        "LocalModelNamespaceCache": {
            "URI": "s3://models/llama",
            "Available": 0,
            "Total": 1,
            "Failed": None,
            "Size": "10Gi",
            "Groups": '["gpus"]',
        },
        "LocalModelNode": {"Wanted": 2, "Available": 1, "Failed": 0, "Models": json.dumps(states, separators=(",", ":"))},
        "LocalModelNodeGroup": {"Limit": "5Ti", "Used": None, "Available": None},
    }


def test_what_kserves_clients_write_is_kept_whole(served: ControlPlane) -> None:
    namespace = served.namespace()
    volume = {"capacity": {"storage": "10Gi"}, "hostPath": {"path": "/models"}, "aFieldOfALaterKubernetes": {"a": 1}}
    group = {"storageLimit": 1_000_000, "persistentVolumeSpec": volume, "persistentVolumeClaimSpec": {"volumeName": "v"}}
    models = [
        {"sourceModelUri": "hf://o/m:rev", "modelName": "m", "namespace": "a", "nodeGroup": "g", "storage": {"key": "k"}},
        {"sourceModelUri": "s3://b/m", "modelName": "m"},
    ]
    for path, kind, spec in (
        (_path("localmodelcaches"), "LocalModelCache", CACHE),
        (_path("localmodelnamespacecaches", namespace), "LocalModelNamespaceCache", CACHE),
        (_path("localmodelnodegroups"), "LocalModelNodeGroup", group),
        (_path("localmodelnodes"), "LocalModelNode", {"localModels": models}),
    ):
        made = served.ask("POST", path, _named(spec, kind))
        assert made["spec"] == spec
        name, status = made["metadata"]["name"], STATUSES.get(path.rpartition("/")[2])
        if status is not None:
            assert served.ask("PATCH", f"{path}/{name}/status", {"status": status})["status"] == status
            # the typed clients of KServe replace the whole object: generation tells a spec that changed from one that didn't
            again = served.ask("GET", f"{path}/{name}")
            assert again["metadata"]["generation"] == 1
            assert served.ask("PUT", f"{path}/{name}", again | {"status": {}})["status"] == status


@pytest.mark.parametrize("lacking", ["sourceModelUri", "modelSize", "nodeGroups"])
def test_a_cache_that_would_crash_kserves_controller_is_refused(served: ControlPlane, lacking: str) -> None:
    spec = {key: value for key, value in CACHE.items() if key != lacking}
    status, answer = served.try_ask("POST", _path("localmodelcaches"), _named(spec, "LocalModelCache"))
    assert (status, lacking in answer["message"]) == (422, True)


@pytest.mark.parametrize(
    ("plural", "spec", "field"),
    [
        ("localmodelcaches", CACHE | {"nodeGroups": []}, "spec.nodeGroups"),
        ("localmodelcaches", CACHE | {"modelSize": "ten"}, "spec.modelSize"),
        ("localmodelnodes", {"localModels": [{"modelName": "m"}]}, "spec.localModels.sourceModelUri"),
        ("localmodelnodes", {}, "spec.localModels"),
        ("localmodelnodegroups", {"storageLimit": "1Gi"}, "spec.persistentVolumeSpec"),
    ],
)
def test_nonsense_is_refused_by_the_field(served: ControlPlane, plural: str, spec: dict[str, Any], field: str) -> None:
    kinds = {"localmodelcaches": "LocalModelCache", "localmodelnodes": "LocalModelNode", "localmodelnodegroups": "LocalModelNodeGroup"}
    status, answer = served.try_ask("POST", _path(plural), _named(spec, kinds[plural]))
    assert status == 422
    assert field in answer["message"]


def test_a_state_that_kserve_does_not_know_is_refused(served: ControlPlane) -> None:
    made = served.ask("POST", _path("localmodelnodes"), _named({"localModels": []}, "LocalModelNode"))
    path = f"{_path('localmodelnodes')}/{made['metadata']['name']}/status"
    status, _ = served.try_ask("PATCH", path, {"status": {"modelStatus": {"m": "ModelLost"}}})
    assert status == 422
