"""A real agent that follows its LocalModelNode on a real API server."""

from __future__ import annotations

import json
import secrets
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from modelcache.agent.client import AgentClient
from modelcache.k8s.api import ApiPlace, ApiServer, VersionGone
from modelcache.k8s.names import API, GROUP, NODES, STATUS_ANNOTATION
from modelcache.patience import Cancellation
from modelcache.sources.throttled import RateLimits
from modelcache.testing.polling import until
from modelcache.testing.servers import Nginx
from tests.cluster.api_faults import SILENCE, FaultyApi
from tests.cluster.nodes import ANNOTATE, Node, following, model_of

pytestmark = pytest.mark.cluster


@pytest.fixture
def origin(nginx: Nginx) -> Path:
    name = secrets.token_hex(6)
    directory = nginx.directory / name
    directory.mkdir()
    return directory


def test_the_node_is_made_to_match_and_says_so(node: Node, nginx: Nginx, origin: Path, tmp_path: Path) -> None:
    one, two = model_of(nginx, origin, "one.bin", b"1" * 100_000), model_of(nginx, origin, "two.bin", b"2" * 50_000)
    node.want(one | {"nodeGroup": "g"})
    with following(node, tmp_path) as running, AgentClient(running.admin) as client:
        until(lambda: node.state("one") == "ModelDownloaded", "the first model")
        told = node.told("one")
        assert (told["bytesDone"], told["bytesTotal"]) == (100_000, 100_000)
        assert told["startedAt"] <= told["finishedAt"]
        [snapshot] = client.list()
        assert told["digest"] == str(snapshot.digest)
        assert told["revision"]
        assert [lease.holder for lease in snapshot.leases] == ["cluster:one"]

        node.want(one, two)
        until(lambda: node.state("two") == "ModelDownloaded", "the second model")
        assert node.status()["copies"] == {"available": 2, "total": 2, "failed": 0}
        assert node.status()["observedGeneration"] == 2
        assert node.told("one") == told

        client.set_rates(RateLimits(total=100_000))
        node.want(one, two, model_of(nginx, origin, "slow.bin", b"3" * 8_000_000))
        until(lambda: node.state("slow") == "ModelDownloading" and node.told("slow").get("bytesTotal") == 8_000_000, "a fetch, reported")
        assert client.status(brief=True).moving

        node.want(two)
        until(lambda: not client.status(brief=True).moving, "the fetch that nobody wants any more to end")
        until(lambda: [str(each.digest) for each in client.list()] == [node.told("two")["digest"]], "the first model to go")
        until(lambda: list(node.status()["modelStatus"]) == ["two"], "the status without it")

        # without the object nothing is wanted, and nothing is dropped; with a new one it begins anew
        [before] = client.list()
        node.plane.ask("DELETE", node.path)
        until(lambda: not any(snapshot.leases for snapshot in client.list()), "the pins to end")
        assert [each.digest for each in client.list()] == [before.digest]
        node.want(two)
        until(lambda: node.told("two").get("digest") == str(before.digest), "the new object's status")
        assert [lease.holder for lease in client.list()[0].leases] == ["cluster:two"]
    assert "written by others" not in (tmp_path / "agent.log").read_text()


def until_watched(node: Node, api: FaultyApi) -> None:
    """Until the agent hears of a change: what failed before is then forgotten."""
    before = api.passed
    node.plane.ask("PATCH", node.path, {"metadata": {"labels": {"turn": secrets.token_hex(4)}}})
    until(lambda: api.passed > before, "a watch that works")


def test_faults_of_the_api_server_are_got_over(node: Node, nginx: Nginx, origin: Path, tmp_path: Path) -> None:
    one, two = model_of(nginx, origin, "one.bin", b"1" * 1000), model_of(nginx, origin, "two.bin", b"2" * 1000)
    node.want(one)
    with FaultyApi(node.plane.url, node.plane.ca_file) as api:
        api.fail("list", 500, 429)
        api.fail("apply", 409, 429, 500)
        with following(node, tmp_path, "--watch-silence", "2", url=api.url) as running, AgentClient(running.admin) as client:
            until(lambda: node.state("one") == "ModelDownloaded", "the model, reported")
            assert api.count("list") == 3

            # the watch is half open, and so is the one after next: what changes meanwhile is seen on the last
            until_watched(node, api)
            api.fail("watch", 410, SILENCE)
            api.freeze()
            node.want(one, two)
            until(lambda: node.state("two") == "ModelDownloaded", "a change that the frozen watch did not tell")
            assert (api.hung, api.count("list")) == (1, 4)  # once more after the 410
            three = model_of(nginx, origin, "three.bin", b"3" * 1000)
            until_watched(node, api)
            api.fail("watch", 500, 429)
            api.freeze()
            node.want(one, two, three)
            until(lambda: node.state("three") == "ModelDownloaded", "a change that came while the API server was busy")
            assert api.faults_left == 0

            # away: what is here stays, and is served, also to an agent that begins anew
            with api.down():
                ensured = client.ensure(one["sourceModelUri"])
                assert (ensured.snapshot.path / "one.bin").read_bytes() == b"1" * 1000
                running.end()
                with following(node, tmp_path, "--watch-silence", "2", url=api.url) as again, AgentClient(again.admin) as other:
                    before = api.count("list")
                    until(lambda: api.count("list") > before + 1, "the new agent to ask in vain")
                    assert sorted(lease.holder for each in other.list() for lease in each.leases) == [
                        "cluster:one",
                        "cluster:three",
                        "cluster:two",
                    ]


def test_a_version_that_the_api_server_no_longer_has_is_told_in_mid_stream(node: Node) -> None:
    node.want()
    place = ApiPlace(node.plane.url, node.plane.ca_file, node.token_file)
    with closing(ApiServer(place)) as api, pytest.raises(VersionGone):
        list(api.watch(f"{API}/{NODES}", {"resourceVersion": "1", "timeoutSeconds": "5"}, Cancellation()))


def test_a_model_that_fails_says_why_and_kserves_definition_gets_an_annotation(
    node: Node, nginx: Nginx, origin: Path, tmp_path: Path
) -> None:
    node.plane.allow(f"system:serviceaccount:{node.namespace}:modelcache-agent", [ANNOTATE])
    uri = f"{nginx.endpoint}/there-is-none/model.bin"
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{NODES}.{GROUP}"
    status = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties"
    ours = node.plane.ask("GET", path)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    kserves = [{"op": "replace", "path": status, "value": {"modelStatus": ours["modelStatus"]}}]
    node.plane.ask("PATCH", path, kserves, content="application/json-patch+json")
    try:
        until(lambda: not takes(node, {"observedGeneration": 1}), "KServe's definition to be in force")
        node.want({"modelName": "gone", "sourceModelUri": uri}, model_of(nginx, origin, "here.bin", b"h" * 1000))

        def annotated() -> dict[str, Any]:
            annotations = node.plane.ask("GET", node.path)["metadata"].get("annotations") or {}
            return dict(json.loads(annotations.get(STATUS_ANNOTATION, "{}")).get("models") or {})

        def both_told() -> bool:
            return "errorCode" in annotated().get("gone", {}) and "digest" in annotated().get("here", {})

        with following(node, tmp_path):
            until(lambda: node.state("gone") == "ModelDownloadError", "the error")
            until(both_told, "the annotation")
            assert list(node.status()) == ["modelStatus"]
        before = annotated()["here"]
        assert {"startedAt", "finishedAt"} < before.keys()
        node.plane.ask("PATCH", node.path, {"metadata": {"annotations": {STATUS_ANNOTATION: json.dumps({"models": {"here": before}})}}})
        with following(node, tmp_path):  # what an agent before this one told is taken from there
            until(both_told, "the annotation of another agent")
            assert annotated()["here"] == before
    finally:
        back = [{"op": "replace", "path": status, "value": ours}]
        node.plane.ask("PATCH", path, back, content="application/json-patch+json")
        until(lambda: takes(node, {"observedGeneration": 1}), "our definition to be in force again")
    with following(node, tmp_path):
        until(lambda: node.told("gone").get("errorCode") == "not-found", "the error in the status itself")


def takes(node: Node, status: dict[str, Any]) -> bool:
    """Whether the served definition has room for this."""
    body = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "LocalModelNode", "status": status}
    path = f"{node.path}-probe"
    body["metadata"] = {"name": f"{node.name}-probe"}
    made = {**body, "spec": {"localModels": []}}
    node.plane.try_ask("POST", f"{API}/{NODES}", made)
    answered, _ = node.plane.try_ask(
        "PATCH", f"{path}/status?fieldManager=probe&force=true&dryRun=All", body, content="application/apply-patch+yaml"
    )
    return bool(answered == 200)
