"""What building the image in a test needs, made once: a base without any registry, and the packages, so that the build asks no index.

    python -m tools.image .cache/image
    python -m tools.image .cache/image --arch arm64 --tag localhost/modelcache:arm64

makes there `storage/` (buildah's, with the base as `localhost/modelcache-base`) and `wheels/`. As root, on Debian: the base is what
debootstrap makes of the host's own release, from where the host's own packages come from. Packages come from where pip is configured to
look; `aarch64.json` is pip's report of what it would install on arm64. With `--tag` the image itself is built, too.

With `--arch arm64` the same for arm64, on a machine of any kind (`tools.emulation`): the base is `localhost/modelcache-base-arm64`, the
packages are in `wheels-arm64/`, and `qemu` is what runs its programs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.emulation import emulated

BASE = "localhost/modelcache-base"
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = "ca-certificates,python3,python3-venv"
NOT_IN_AN_IMAGE = (
    "dev",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/man",
    "usr/share/locale",
)
"""What Debian's slim images leave out, too; device nodes are the runtime's."""
ARM64 = "arm64"
EMULATOR, EMULATORS = "qemu-aarch64-static", "qemu-user-static"
"""A program, and Debian's package of it: taken out of it, for installing it registers handlers for the whole machine."""
NOT_HERE = 3
"""Exit status, as of tools/environment.py: it can't be had on this machine."""
NO_NODES = """#!/bin/sh
for name; do case $name in */test-dev-null) : > "$name"; exit 0 ;; esac; done
exit 1
"""
"""In place of mknod in debootstrap's second stage: where it may make no nodes it ends, and its first stage has made all of them."""
PROJECT = Path(__file__).resolve().parent.parent
GLIBC_MINORS = range(17, 37)
"""Of manylinux tags that a base of Debian 12 (glibc 2.36) takes; 17 is manylinux2014."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes what is missing; packages are looked at each time."""
    parser = argparse.ArgumentParser(description="Makes what building the image in a test needs.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--arch", choices=[ARM64], help="for another processor than this machine's")
    parser.add_argument("--tag", metavar="NAME", help="build the image, too, as this")
    options = parser.parse_args(arguments)
    directory, arch = options.directory.absolute(), options.arch
    directory.mkdir(parents=True, exist_ok=True)
    if arch is not None:
        get_emulator(directory)
    if not has_base(directory, arch):
        make_base(directory, arch)
    get_wheels(directory, arch)
    if options.tag is not None:
        print(_do(build(directory, options.tag, arch)))


def buildah(directory: Path, *arguments: str | Path) -> list[str]:
    """A command of buildah's on the storage here, which needs no support of the kernel's but root."""
    store = ["--root", str(directory / "storage"), "--runroot", str(directory / "run"), "--storage-driver", "vfs"]
    return ["buildah", *store, *map(str, arguments)]


def base_of(arch: str | None) -> str:
    return BASE if arch is None else f"{BASE}-{arch}"


def build(directory: Path, name: str, arch: str | None = None) -> list[str]:
    """The command that builds the image from what lies here. `arch`: None: for this machine."""
    wheels = directory / ("wheels" if arch is None else f"wheels-{arch}")
    given = ["--build-arg", f"BASE={base_of(arch)}", "--build-arg", "PIP_NO_INDEX=1", "--build-context", f"wheels={wheels}"]
    how = ["--isolation", "chroot", "--pull-never", "--layers=false", *([] if arch is None else ["--arch", arch])]
    return _there(directory, arch, buildah(directory, "build", *how, *given, "--tag", name, PROJECT))


def has_base(directory: Path, arch: str | None = None) -> bool:
    return subprocess.run(buildah(directory, "inspect", "--type", "image", base_of(arch)), capture_output=True, check=False).returncode == 0


def make_base(directory: Path, arch: str | None = None) -> None:
    """debootstrap's smallest system with Python, less what nobody reads in an image, committed as the base."""
    tree = directory / "base"
    shutil.rmtree(tree, ignore_errors=True)
    first = [] if arch is None else ["--arch", arch, "--foreign"]
    _do(["debootstrap", *first, "--variant=minbase", f"--include={PACKAGES}", _release(), str(tree), _mirror()])
    if arch is not None:
        _end_base(directory, arch, tree)
    for name in NOT_IN_AN_IMAGE:
        shutil.rmtree(tree / name)
        (tree / name).mkdir()
    container = _do(buildah(directory, "from", *([] if arch is None else ["--arch", arch]), "scratch")).strip()
    try:
        _do(buildah(directory, "add", "--quiet", container, tree, "/"))
        _do(buildah(directory, "commit", "--quiet", container, base_of(arch)))
    finally:
        _do(buildah(directory, "rm", container))
    shutil.rmtree(tree)


def _end_base(directory: Path, arch: str, tree: Path) -> None:
    """debootstrap's second stage, by programs of the base itself."""
    own = tree / "debootstrap/own"
    own.mkdir()
    (own / "mknod").write_text(NO_NODES, encoding="ascii")
    (own / "mknod").chmod(0o755)
    path = f"PATH=/debootstrap/own:{SYSTEM_PATH}"
    _do(_there(directory, arch, ["chroot", str(tree), "/usr/bin/env", path, "/debootstrap/debootstrap", "--second-stage"]))
    shutil.rmtree(tree / "debootstrap", ignore_errors=True)


def get_emulator(directory: Path) -> None:
    """Exits with NOT_HERE where nothing can be run by it."""
    if not (directory / "qemu").exists():
        with tempfile.TemporaryDirectory() as place:
            _do(["apt-get", "download", "-o", "APT::Sandbox::User=root", EMULATORS], place)
            (package,) = Path(place).glob("*.deb")
            _do(["dpkg-deb", "--extract", str(package), f"{place}/all"])
            shutil.copy(f"{place}/all/usr/bin/{EMULATOR}", directory / "qemu")
    done = subprocess.run(emulated(directory / "qemu", ["true"]), cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(
            f"left out: an image for arm64, for running its programs here takes root and Linux 6.7 or later ({done.stderr.strip()[-200:]})"
        )
        raise SystemExit(NOT_HERE)


def get_wheels(directory: Path, arch: str | None = None) -> None:
    """Packages of the image; of this machine's, pip's word, too, that arm64 has them."""
    wanted = [*requirements(extras()), *build_requirements()]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    chosen = ["--only-binary=:all:", "--constraint", str(PROJECT / "constraints.txt"), "--python-version", "3.11"]
    arm64 = [f"--platform=manylinux_2_{minor}_aarch64" for minor in GLIBC_MINORS] + ["--platform=manylinux2014_aarch64"]
    wheels = directory / ("wheels" if arch is None else f"wheels-{arch}")
    shutil.rmtree(wheels, ignore_errors=True)
    _do([*pip, "download", *chosen, *([] if arch is None else arm64), "--dest", str(wheels), *wanted])
    if arch is None:
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


def _there(directory: Path, arch: str | None, command: Sequence[str]) -> list[str]:
    """The command where programs of that processor run."""
    return list(command) if arch is None else emulated(directory / "qemu", command)


def _do(command: Sequence[str], place: str | Path = PROJECT) -> str:
    """What it printed, run in a directory; ends with what it said where it fails."""
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environ, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: `{command[0]}` failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
