"""The image for arm64, built and run here by QEMU from a base made for it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.units import MIB
from tests.cluster.image.conftest import PARTS, Image, built
from tests.cluster.image.test_image import LIMIT_BYTES, size_bytes
from tools.emulation import emulated
from tools.image import ARM64, PROJECT

pytestmark = [pytest.mark.soak, pytest.mark.image, pytest.mark.root, pytest.mark.timeout(3600)]
PLACE = 'mount --rbind /dev "$0/dev" && mount --rbind /proc "$0/proc" && mount --bind "$1" "$0/tmp" && shift && exec chroot "$0" "$@"'
AARCH64 = 183
"""`e_machine` of its programs and libraries (elf(5))."""


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with built(ARM64) as made:
        yield made


def run(image: Image, shared: Path, *command: str) -> str:
    """What a command in the image prints; its /tmp is `shared`."""
    environ = [
        "/usr/bin/env",
        "-i",
        "PATH=/opt/modelcache/bin:/usr/bin:/bin",
        "HOME=/tmp",
        "MODELCACHE_ROOT=/tmp/store",
        "MODELCACHE_AGENT=none",
    ]
    there = ["sh", "-c", PLACE, str(image.rootfs), str(shared), *environ, *command]
    done = subprocess.run(emulated(PARTS / "qemu", there), cwd=PROJECT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def machine_of(path: Path) -> int | None:
    """Of a program or library; None: it is none."""
    with path.open("rb") as file:
        head = file.read(20)
    return int.from_bytes(head[18:20], "little") if head.startswith(b"\x7fELF") else None


def test_it_is_arm64_through_and_through_within_its_size(image: Image) -> None:
    assert image.config["architecture"] == ARM64
    assert size_bytes(image.rootfs) < LIMIT_BYTES
    machines = [machine_of(path) for path in image.rootfs.rglob("*") if path.is_file() and not path.is_symlink()]
    assert machines.count(AARCH64) > 100
    assert set(machines) == {AARCH64, None}


def test_its_agent_starts_and_its_command_line_fetches(image: Image, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    data = os.urandom(3 * MIB + 1)
    (model / "weights.safetensors").write_bytes(data)
    assert run(image, tmp_path, "python", "-c", "import platform; print(platform.machine())") == "aarch64\n"
    assert "--pods-dir" in run(image, tmp_path, "python", "-m", "daemonset", "--help")
    limits = ["env", "MODELCACHE_HIGH_WATERMARK=1", "MODELCACHE_LOW_WATERMARK=1"]
    run(image, tmp_path, *limits, "modelcache", "pull", "file:///tmp/model")
    (snapshot,) = (tmp_path / "store/snapshots").iterdir()
    assert (snapshot / "weights.safetensors").read_bytes() == data
