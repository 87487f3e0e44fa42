"""The control plane of the tests: what the other tests here rely on."""

from __future__ import annotations

import pytest

from modelcache.testing.servers.control_plane import ISSUER, ControlPlane

pytestmark = pytest.mark.cluster


def test_a_service_account_may_do_nothing_until_a_binding_says_so(control_plane: ControlPlane) -> None:
    namespace = control_plane.namespace()
    token = control_plane.service_account(namespace, "agent")
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    control_plane.ask("POST", path, {"metadata": {"name": "one"}})
    assert control_plane.try_ask("GET", path, token=token)[0] == 403
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}
    control_plane.allow(f"system:serviceaccount:{namespace}:agent", [rule])
    assert [each["metadata"]["name"] for each in control_plane.ask("GET", path, token=token)["items"]] == ["one"]
    review = control_plane.ask("POST", "/apis/authentication.k8s.io/v1/tokenreviews", {"spec": {"token": token}})
    assert review["status"]["user"]["username"] == f"system:serviceaccount:{namespace}:agent"
    assert review["status"]["audiences"] == [ISSUER]
    assert control_plane.try_ask("GET", path, token="no-token")[0] == 401
