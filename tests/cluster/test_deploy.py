"""The manifests of deploy/ on a real API server: it takes every field, and what they allow is what the agent does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelcache.k8s.names import AGENT, GROUP, NODES, SYSTEM_NAMESPACE
from modelcache.testing.servers.control_plane import ControlPlane
from tests.cluster.deployed import deploy, path_of
from tests.deploy.manifests import Object, objects, one

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def deployed(control_plane: ControlPlane) -> ControlPlane:
    deploy(control_plane)
    return control_plane


def lost(sent: Any, kept: Any, at: str = "") -> list[str]:
    """Where `kept` hasn't what was sent: a field that the API doesn't know is dropped without a word."""
    if isinstance(sent, dict):
        return [where for name in sent for where in lost(sent[name], (kept or {}).get(name), f"{at}.{name}")]
    if isinstance(sent, list) and isinstance(kept, list) and len(sent) == len(kept):
        return [where for number, (one, other) in enumerate(zip(sent, kept, strict=True)) for where in lost(one, other, f"{at}[{number}]")]
    return [] if sent == kept else [f"{at}: {sent!r} is {kept!r}"]


@pytest.mark.parametrize("manifest", objects(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_every_field_is_one_of_the_api(deployed: ControlPlane, manifest: Object) -> None:
    assert lost(manifest, deployed.apply(path_of(manifest), manifest, dry_run=True)) == []
    assert lost({"a": [{"b": 1}]}, {"a": [{}]}) == [".a[0].b: 1 is None"]


def resource(name: str, verb: str, *, group: str = "", namespace: str = "", sub: str = "") -> Object:
    return {"resourceAttributes": {"group": group, "resource": name, "verb": verb, "namespace": namespace, "subresource": sub}}


ALLOWED = [
    *(resource(NODES, verb, group=GROUP) for verb in ("get", "list", "watch")),
    resource(NODES, "patch", group=GROUP, sub="status"),
    resource("tokenreviews", "create", group="authentication.k8s.io"),
    resource("subjectaccessreviews", "create", group="authorization.k8s.io"),
    resource("events", "create", namespace="default"),
]
REFUSED = [
    *(resource("secrets", verb, namespace=place) for verb in ("get", "list", "watch", "create") for place in ("", SYSTEM_NAMESPACE)),
    *(resource(NODES, verb, group=GROUP) for verb in ("create", "update", "patch", "delete")),
    resource("pods", "list"),
    resource("nodes", "get", sub="proxy"),
    resource("serviceaccounts", "create", sub="token", namespace=SYSTEM_NAMESPACE),
    resource("serviceaccounts", "impersonate"),
    {"nonResourceAttributes": {"path": "/modelcache/list", "verb": "get"}},
]


@pytest.mark.parametrize(("questions", "answer"), [(ALLOWED, True), (REFUSED, False)], ids=["what it does", "what it doesn't"])
def test_the_agents_account_may_do_what_it_does_and_nothing_else(deployed: ControlPlane, questions: list[Object], answer: bool) -> None:
    token = deployed.service_account(SYSTEM_NAMESPACE, AGENT)
    reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    given = [deployed.ask("POST", reviews, {"spec": question}, token=token)["status"]["allowed"] for question in questions]
    assert [question for question, allowed in zip(questions, given, strict=True) if allowed is not answer] == []


def rules_of(plane: ControlPlane, token: str, namespace: str) -> set[str]:
    """All that somebody may do there, as the API server counts it."""
    review = {"spec": {"namespace": namespace}}
    found = plane.ask("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review, token=token)["status"]
    return {json.dumps(rule, sort_keys=True) for rule in (*found["resourceRules"], *found["nonResourceRules"])}


@pytest.mark.parametrize("namespace", ["default", "kube-system", SYSTEM_NAMESPACE])
def test_its_rules_are_those_of_its_role_and_everybodys(deployed: ControlPlane, namespace: str) -> None:
    agents = rules_of(deployed, deployed.service_account(SYSTEM_NAMESPACE, AGENT), namespace)
    anybodys = rules_of(deployed, deployed.service_account(SYSTEM_NAMESPACE, "anybody"), namespace)
    assert agents - anybodys == {json.dumps(rule, sort_keys=True) for rule in one("ClusterRole")["rules"]}


def test_a_viewer_sees_what_the_role_for_it_names_and_no_more(deployed: ControlPlane) -> None:
    namespace = deployed.namespace()
    token = deployed.service_account(namespace, "prometheus")
    binding = {
        "metadata": {"name": f"viewer-{namespace}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "modelcache-viewer"},
        "subjects": [{"kind": "ServiceAccount", "name": "prometheus", "namespace": namespace}],
    }
    reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    question = {"spec": {"nonResourceAttributes": {"path": "/modelcache/metrics", "verb": "get"}}}
    assert deployed.ask("POST", reviews, question, token=token)["status"]["allowed"] is False
    deployed.ask("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
    assert deployed.ask("POST", reviews, question, token=token)["status"]["allowed"] is True
    question["spec"]["nonResourceAttributes"]["path"] = "/metrics"
    assert deployed.ask("POST", reviews, question, token=token)["status"]["allowed"] is False
