"""What building the image in a test needs, made once: a base without any registry, and the packages, so that the build asks no index.

    python -m tools.image .cache/image

makes there `storage/` (buildah's, with the base as `localhost/modelcache-base`) and `wheels/`. As root, on Debian: the base is what
debootstrap makes of the host's own release, from where the host's own packages come from. Packages come from where pip is configured to
look; `aarch64.json` is pip's report of what it would install on arm64.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

BASE = "localhost/modelcache-base"
PACKAGES = "ca-certificates,python3,python3-venv"
NOT_IN_AN_IMAGE = ("var/cache/apt", "var/lib/apt/lists", "var/log", "usr/share/doc", "usr/share/man", "usr/share/locale")
"""What Debian's slim images leave out, too."""
PROJECT = Path(__file__).resolve().parent.parent
GLIBC_MINORS = range(17, 37)
"""Of manylinux tags that a base of Debian 12 (glibc 2.36) takes; 17 is manylinux2014."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes what is missing; packages are looked at each time."""
    parser = argparse.ArgumentParser(description="Makes what building the image in a test needs.")
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args(arguments).directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    if not has_base(directory):
        make_base(directory)
    get_wheels(directory)


def buildah(directory: Path, *arguments: str | Path) -> list[str]:
    """A command of buildah's on the storage here, which needs no support of the kernel's but root."""
    store = ["--root", str(directory / "storage"), "--runroot", str(directory / "run"), "--storage-driver", "vfs"]
    return ["buildah", *store, *map(str, arguments)]


def has_base(directory: Path) -> bool:
    return subprocess.run(buildah(directory, "inspect", "--type", "image", BASE), capture_output=True, check=False).returncode == 0


def make_base(directory: Path) -> None:
    """debootstrap's smallest system with Python, less what nobody reads in an image, committed as BASE."""
    tree = directory / "base"
    shutil.rmtree(tree, ignore_errors=True)
    _do(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", _release(), str(tree), _mirror()])
    for name in NOT_IN_AN_IMAGE:
        shutil.rmtree(tree / name)
        (tree / name).mkdir()
    container = _do(buildah(directory, "from", "scratch")).strip()
    try:
        _do(buildah(directory, "add", "--quiet", container, tree, "/"))
        _do(buildah(directory, "commit", "--quiet", container, BASE))
    finally:
        _do(buildah(directory, "rm", container))
    shutil.rmtree(tree)


def get_wheels(directory: Path) -> None:
    """Packages of the image for this machine, and pip's word that arm64 has them, too."""
    wanted = [*requirements(extras()), *build_requirements()]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    chosen = ["--only-binary=:all:", "--constraint", str(PROJECT / "constraints.txt"), "--python-version", "3.11"]
    shutil.rmtree(directory / "wheels", ignore_errors=True)
    _do([*pip, "download", *chosen, "--dest", str(directory / "wheels"), *wanted])
    arm64 = [f"--platform=manylinux_2_{minor}_aarch64" for minor in GLIBC_MINORS] + ["--platform=manylinux2014_aarch64"]
    dry = ["--dry-run", "--ignore-installed", "--target", str(directory / "none"), "--report", str(directory / "aarch64.json")]
    _do([*pip, "install", *chosen, *arm64, *dry, *wanted])


def extras() -> list[str]:
    """Those that the Dockerfile installs."""
    found = re.search(r"^ARG EXTRAS=(\S+)$", (PROJECT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1].split(",")


def requirements(of: Iterable[str]) -> list[str]:
    """Of modelcache with these extras; those that name modelcache itself are not expected here."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return sorted({*project["dependencies"], *(text for extra in of for text in project["optional-dependencies"][extra])})


def build_requirements() -> list[str]:
    return list(tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"])


def _release() -> str:
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return next(line.partition("=")[2].strip('"') for line in lines if line.startswith("VERSION_CODENAME="))


def _mirror() -> str:
    """Where apt has this release's packages from."""
    targets = _do(["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"])
    found = [line.split(" ", 1)[1] for line in targets.splitlines() if line.split(" ", 1)[0] == _release()]
    if not found:
        raise SystemExit("error: apt has no lists of this release: apt-get update")
    return found[0]


def _do(command: Sequence[str]) -> str:
    """What it printed; ends with what it said where it fails."""
    done = subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: `{command[0]}` failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
