"""The session's control plane. Whoever uses it marks the test `cluster`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.k8s import crds
from modelcache.k8s.names import API
from modelcache.testing.polling import until
from modelcache.testing.servers.control_plane import ControlPlane
from tests.cluster.nodes import RULES, Node

UNPACKED = Path(".cache/kube")
"""Where tools/environment.py puts kube-apiserver."""


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd and kube-apiserver, the session's; a test keeps to names of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(UNPACKED.absolute()), prepend=os.pathsep)
        with ControlPlane(tmp_path_factory.mktemp("control-plane")) as plane:
            yield plane


@pytest.fixture(scope="session")
def served(control_plane: ControlPlane) -> ControlPlane:
    """The control plane, with modelcache's custom resources."""
    for name in crds.NAMES:
        control_plane.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crds.text_of(name))
    until(lambda: all(control_plane.try_ask("GET", f"{API}/{name}")[0] == 200 for name in crds.NAMES), "the resources to be served")
    return control_plane


@pytest.fixture
def node(served: ControlPlane, tmp_path: Path) -> Node:
    """Of this test, with an agent's rights and no others."""
    namespace, token_file = served.namespace(), tmp_path / "token"
    token_file.write_text(served.service_account(namespace, "modelcache-agent"))
    served.allow(f"system:serviceaccount:{namespace}:modelcache-agent", RULES)
    return Node(served, namespace, f"node-{secrets.token_hex(4)}", token_file)
