"""The image itself: what is in it, how large it is, who it runs as, and on which processors it can be built."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.testing.servers import SeaweedFS
from modelcache.units import MIB
from tests.cluster.image.conftest import PARTS, Image
from tests.cluster.image.container import Container
from tests.deploy.manifests import agents_pod
from tools.image import PROJECT

pytestmark = [pytest.mark.image, pytest.mark.root, pytest.mark.timeout(600)]
LIMIT_BYTES = 250_000_000
NOT_IN_IT = ("torch", "transformers", "vllm", "numpy", "pytest", "pip", "hatchling")


def files(directory: Path) -> Iterator[os.stat_result]:
    seen = set()
    for place, names, others in os.walk(directory):
        for name in (*names, *others):
            found = os.lstat(Path(place, name))
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                yield found


def size_bytes(directory: Path) -> int:
    """As Docker tells it: what files hold, without directories."""
    total = sum(found.st_size for found in files(directory) if not stat.S_ISDIR(found.st_mode))
    print(f"{total / 1e6:.0f} MB")
    return total


def packages(image: Image) -> set[str]:
    (found,) = (image.rootfs / "opt/modelcache/lib").glob("python3.*/site-packages")
    return {path.name for path in found.iterdir()}


def test_it_has_the_library_the_agent_and_no_framework_within_its_size(image: Image) -> None:
    assert size_bytes(image.rootfs) < LIMIT_BYTES
    assert {"modelcache", "daemonset", "grpc", "awscrt", "botocore", "azure"} <= packages(image)
    assert packages(image).isdisjoint(NOT_IN_IT)
    assert not list(image.rootfs.glob("src")) + list(image.rootfs.glob("opt/build"))


def test_nobodys_files_can_be_written_and_no_index_is_named_in_it(image: Image) -> None:
    assert [
        found for found in files(image.rootfs / "opt") if found.st_uid != 0 or (found.st_mode & 0o022 and not stat.S_ISLNK(found.st_mode))
    ] == []
    assert image.config["config"]["User"] == "65532:65532"
    assert image.config["config"].get("Entrypoint") is None
    told = json.dumps(image.config)
    assert not re.search(r"PIP_|index", told), told


def test_the_command_line_runs_as_nobody_on_a_read_only_root_and_pulls_from_s3(
    image: Image, seaweedfs: SeaweedFS, bucket: str, tmp_path: Path
) -> None:
    pod = agents_pod()
    container = pod["containers"][0]
    uid, gid = map(int, image.config["config"]["User"].split(":"))
    environ = {
        "AWS_ENDPOINT_URL": seaweedfs.endpoint,
        "AWS_ACCESS_KEY_ID": seaweedfs.admin.access_key,
        "AWS_SECRET_ACCESS_KEY": seaweedfs.admin.secret_key,
        "AWS_REGION": "us-east-1",
        "MODELCACHE_ROOT": "/tmp/store",
        "MODELCACHE_AGENT": "none",
        "MODELCACHE_HIGH_WATERMARK": "1",
        "MODELCACHE_LOW_WATERMARK": "1",
        "HOME": "/nonexistent",
    }
    container |= {
        "securityContext": {**container["securityContext"], "runAsUser": uid, "runAsGroup": gid},
        "env": [{"name": name, "value": value} for name, value in environ.items()],
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    data = os.urandom(3 * MIB)
    seaweedfs.put(bucket, "model/weights.safetensors", data)
    with Container(
        image.rootfs, pod, tmp_path / "host", command=["modelcache", "--json", "pull", f"s3://{bucket}/model"], shares_network=True
    ) as pulled:
        assert pulled.wait() == 0, pulled.log.read_text()
    assert '"size_bytes": 3145728' in pulled.log.read_text() or str(len(data)) in pulled.log.read_text()
    for command, says in (
        (["modelcache", "--help"], "prewarm"),
        (["python", "-m", "daemonset", "--help"], "--pods-dir"),
        (["touch", "/x"], "Read-only"),
    ):
        with Container(image.rootfs, pod, tmp_path / "host", command=command) as ran:
            ran.wait()
        assert says in ran.log.read_text()


def test_every_package_of_it_has_a_build_for_arm64_and_nothing_names_a_processor() -> None:
    for name in ("Dockerfile", ".dockerignore"):
        assert not re.search(r"x86|amd64|linux-gnu", (PROJECT / name).read_text(encoding="utf-8"))
    report = json.loads((PARTS / "aarch64.json").read_text(encoding="utf-8"))
    wheels = [each["download_info"]["url"].rsplit("/", 1)[1] for each in report["install"]]
    assert len(wheels) > 20
    assert {name for name in wheels if not name.endswith(("_aarch64.whl", "-none-any.whl"))} == set()
    assert {each["metadata"]["name"].lower() for each in report["install"]} >= {"grpcio", "awscrt", "xxhash", "hatchling"}
