"""The session's control plane. Whoever uses it marks the test `cluster`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.testing.servers.control_plane import ControlPlane

UNPACKED = Path(".cache/kube")
"""Where tools/environment.py puts kube-apiserver."""


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd and kube-apiserver, the session's; a test keeps to names of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(UNPACKED.absolute()), prepend=os.pathsep)
        with ControlPlane(tmp_path_factory.mktemp("control-plane")) as plane:
            yield plane
