"""The image, built once for the session from what lies here. Whoever uses it marks the test `image`."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelcache.testing.small_filesystem import small_filesystem
from modelcache.units import MIB
from tools.image import PROJECT, build, buildah

PARTS = PROJECT / ".cache/image"
"""Where tools/image.py puts the base and the packages."""


PODS = "var/lib/kubelet/pods"


@dataclass(frozen=True)
class Image:
    """A built image.

    Attributes:
        rootfs: its files, to be looked at and run, not written to.
        config: what it says of itself, in the OCI image's format.
    """

    rootfs: Path
    config: Mapping[str, Any]


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    with built() as made:
        yield made


@contextmanager
def built(arch: str | None = None) -> Iterator[Image]:
    """The image for another processor; None: for this machine."""
    name = f"localhost/modelcache-test-{secrets.token_hex(4)}"
    _do(build(PARTS, name, arch))
    container = ""
    try:
        container = _do(buildah(PARTS, "from", "--pull-never", *([] if arch is None else ["--arch", arch]), name))
        config = json.loads(_do(buildah(PARTS, "inspect", "--type", "image", name)))["OCIv1"]
        yield Image(Path(_do(buildah(PARTS, "mount", container))), config)
    finally:
        if container:
            _do(buildah(PARTS, "rm", container))
        _do(buildah(PARTS, "rmi", name))


@contextmanager
def mounted(*arguments: str | Path) -> Iterator[None]:
    subprocess.run(["mount", *map(str, arguments)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(arguments[-1])], check=True)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A host with kubelet's pods, one of which has a volume; what is mounted here is seen by who mounted it `HostToContainer`."""
    with small_filesystem(tmp_path / "disk", size_bytes=256 * MIB) as directory:
        subprocess.run(["mount", "--make-shared", str(directory)], check=True)
        (directory / PODS).mkdir(parents=True, mode=0o750)
        token = directory / PODS / "agent" / "volumes" / "token"
        token.mkdir(parents=True)
        with mounted("-t", "tmpfs", "tmpfs", token):
            yield directory


def _do(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout.strip()
