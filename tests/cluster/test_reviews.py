"""Who may see what the agent keeps, by the word of a real API server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from daemonset.reviews import TTL_S, Reviews, Verdict, by
from modelcache.errors import AccessDenied, ModelCacheError
from modelcache.k8s.api import ApiPlace, ApiServer
from modelcache.testing.servers.control_plane import ControlPlane
from modelcache.testing.servers.ports import free_ports
from tests.cluster.nodes import RULES

pytestmark = pytest.mark.cluster
SEE = [{"nonResourceURLs": ["/modelcache/list"], "verbs": ["get"]}]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    return control_plane.namespace()


@pytest.fixture
def api(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[ApiServer]:
    token = tmp_path / "token"
    token.write_text(control_plane.service_account(namespace, "agent"))
    with closing(ApiServer(ApiPlace(control_plane.url, control_plane.ca_file, token))) as server:
        yield server


def test_tokens_are_nobodys_somebodys_and_of_who_may_see(control_plane: ControlPlane, namespace: str, api: ApiServer) -> None:
    clock = Clock()
    admit = by(Reviews(api, clock=clock))
    token = control_plane.service_account(namespace, "monitor")
    with pytest.raises(AccessDenied):
        admit(f"Bearer {token}", "/modelcache/list")  # the agent itself may not ask yet
    control_plane.allow(f"system:serviceaccount:{namespace}:agent", RULES)

    assert admit("Bearer nonsense", "/modelcache/list") is Verdict.UNKNOWN
    assert admit(f"Bearer {token}", "/modelcache/list") is Verdict.FORBIDDEN
    assert admit(f"Bearer {control_plane.admin_token}", "/modelcache/list") is Verdict.ALLOWED
    control_plane.allow(f"system:serviceaccount:{namespace}:monitor", SEE)
    clock.now_s += TTL_S[False] + 1
    assert admit(f"Bearer {token}", "/modelcache/list") is Verdict.ALLOWED
    assert admit(f"Bearer {token}", "/modelcache/metrics") is Verdict.FORBIDDEN


def test_without_the_api_server_nobody_is_let_in(control_plane: ControlPlane, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(control_plane.admin_token)
    [port] = free_ports(1)
    with closing(ApiServer(ApiPlace(f"https://127.0.0.1:{port}", control_plane.ca_file, token))) as api, pytest.raises(ModelCacheError):
        by(Reviews(api))(f"Bearer {control_plane.admin_token}", "/modelcache/list")
