"""How often a real API server hears of a model that comes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from daemonset.reporting import JITTER, PROGRESS_EVERY_S
from modelcache.k8s.api import ApiPlace, ApiServer
from tests.agent.pacing import Telling
from tests.cluster.nodes import Node

pytestmark = pytest.mark.cluster


def test_a_minute_of_progress_is_a_handful_of_patches(node: Node, tmp_path: Path) -> None:
    node.want({"modelName": "m", "sourceModelUri": "s3://b/m"})
    with closing(ApiServer(ApiPlace(node.plane.url, node.plane.ca_file, node.token_file))) as api:
        telling = Telling(api, node.name)
        with telling.of(node.plane.ask("GET", node.path)):
            telling.after(60, bytes_a_second=10)
            assert 60 / (PROGRESS_EVERY_S * (1 + JITTER) + 1) <= len(telling.told) <= 1 + 60 / PROGRESS_EVERY_S
            assert node.told("m")["bytesDone"] == telling.told[-1][1]
            telling.ends()
            telling.after(2)
    found = node.plane.ask("GET", node.path)
    assert found["status"]["modelStatus"] == {"m": "ModelDownloaded"}
    assert [each["manager"] for each in found["metadata"]["managedFields"] if each["operation"] == "Apply"] == ["modelcache-agent"]
