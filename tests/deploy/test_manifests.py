"""The manifests against the code that they start: what they name is there, and they give no more than is needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemonset.__main__ import _parser
from modelcache import __version__
from modelcache.config import Config
from modelcache.k8s.names import AGENT, SYSTEM_NAMESPACE
from tests.deploy.manifests import DEPLOY, PROJECT, agents_pod, kustomization, objects, one


def container() -> dict[str, Any]:
    (found,) = agents_pod()["containers"]
    return dict(found)


def test_the_kustomization_has_every_file_once_and_this_version() -> None:
    here = {str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*.yaml")} - {"kustomization.yaml"}
    assert sorted(kustomization()["resources"]) == sorted(here)
    assert kustomization()["images"] == [{"name": container()["image"], "newTag": __version__}]
    assert kustomization()["namespace"] == SYSTEM_NAMESPACE == one("Namespace", SYSTEM_NAMESPACE)["metadata"]["name"]
    names = [(each["kind"], each["metadata"]["name"]) for each in objects()]
    assert len(set(names)) == len(names)


def test_the_agent_takes_every_argument_and_ends_before_it_is_killed() -> None:
    arguments = [re.sub(r"\$\(POD_IP\)", "fd00::1", re.sub(r"\$\(NODE_NAME\)", "node-1", text)) for text in container()["args"]]
    options = _parser().parse_args(arguments)
    assert "$(" not in "".join(arguments)
    assert options.http == ("fd00::1", next(each["containerPort"] for each in container()["ports"] if each["name"] == "http"))
    assert agents_pod()["terminationGracePeriodSeconds"] >= options.grace + 10
    mounts = {each["mountPath"]: each for each in container()["volumeMounts"]}
    paths = {each["name"]: each.get("hostPath", {}).get("path") for each in agents_pod()["volumes"]}
    for path in (options.root, options.pods_dir):  # what the table of mounts tells is the host's own path
        assert paths[mounts[str(path)]["name"]] == str(path)
    assert mounts[str(options.pods_dir)]["mountPropagation"] == "HostToContainer"
    assert {str(path.parent) for path in (options.socket, options.driver_socket, options.config)} <= mounts.keys()


def test_its_settings_are_settings(tmp_path: Path) -> None:
    text = one("ConfigMap")["data"]["config.toml"]
    for version in (text, re.sub(r"(?m)^#(?=\w+ = )", "", text)):  # as it is, and with what it proposes
        (tmp_path / "config.toml").write_text(version)
        Config.load(file=tmp_path / "config.toml")


def test_names_and_labels_lead_to_each_other() -> None:
    daemon_set, labels = one("DaemonSet")["spec"], one("DaemonSet")["spec"]["template"]["metadata"]["labels"]
    assert daemon_set["selector"]["matchLabels"] == one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    assert agents_pod()["serviceAccountName"] == AGENT == one("ServiceAccount")["metadata"]["name"]
    assert agents_pod()["priorityClassName"] == one("PriorityClass", "modelcache-node")["metadata"]["name"]
    assert one("PriorityClass", "modelcache-node")["value"] <= 1_000_000_000  # the most that isn't the system's
    assert one("ClusterRoleBinding")["subjects"] == [{"kind": "ServiceAccount", "name": AGENT, "namespace": SYSTEM_NAMESPACE}]
    policy = yaml.safe_dump(one("NetworkPolicy"))
    assert "port: http" in policy


@pytest.mark.parametrize(
    "role", [each for each in objects() if each["kind"] in ("Role", "ClusterRole")], ids=lambda role: role["metadata"]["name"]
)
def test_no_role_has_a_verb_on_secrets_or_one_for_everything(role: dict[str, list[dict[str, list[str]]]]) -> None:
    for rule in role["rules"]:
        resources = {name.partition("/")[0] for name in rule.get("resources", [])}
        assert resources.isdisjoint({"secrets", "pods", "nodes", "serviceaccounts", "*"})
        assert "*" not in rule["verbs"] + rule.get("apiGroups", [])


def test_the_pod_has_limits_probes_and_nothing_of_roots_but_the_files() -> None:
    agent, pod = container(), agents_pod()
    assert agent["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod.keys().isdisjoint({"hostNetwork", "hostPID", "hostIPC"})
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert {"memory", "cpu"} <= agent["resources"]["requests"].keys()
    assert "memory" in agent["resources"]["limits"]
    assert {agent[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")} == {"/readyz", "/healthz"}
    assert one("DaemonSet")["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"]


def test_no_registry_is_named_so_whose_image_it_is_an_overlay_says() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (*DEPLOY.rglob("*.yaml"), PROJECT / "Dockerfile"))
    assert not re.search(r"(?:image:|FROM|ARG BASE=)\s*[\w-]+(?:\.[\w-]+)+[/:]\w+/", text)


def test_the_document_has_what_is_there() -> None:
    document = (PROJECT / "docs/deploy.md").read_text(encoding="utf-8")
    arguments = re.findall(r"(?m)^ARG (\w+)(?:=(\S+))?$", (PROJECT / "Dockerfile").read_text(encoding="utf-8"))
    assert len(arguments) == 5
    for name, default in arguments:
        assert re.search(rf"(?m)^\|[^|\n]*`{name}`[^|\n]*\| {f'`{default}`' if default else 'none'} \|", document), name
    for each in objects():
        if each["kind"] != "ClusterRoleBinding":
            assert re.search(rf"(?m)^\| [^|\n]*\b{each['kind']}\b[^|\n]*`{each['metadata']['name']}` \|", document), each["kind"]
    for mount in container()["volumeMounts"]:
        assert f"\n| `{mount['mountPath']}` |" in document
