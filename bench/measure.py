"""One run of one contender: a fresh directory, a warm server, a quiet disk, and what it took."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.contenders import Command, Contender, Kind
from bench.memory import warm_free_pages
from bench.origins import Served
from modelcache.units import GIB

CLOCK = Path(__file__).with_name("clock.py")
RUN_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Place:
    """Where contenders run: the cache (models, virtual environments), and a directory on the disk that is measured."""

    cache: Path
    scratch: Path


class RunFailed(Exception):
    """A contender failed, or brought something else than the model."""


def run(contender: Contender, served: Served, place: Place, cores: set[int] | None, digests: dict[str, str] | None) -> dict[str, Any]:
    """Start a contender, and measure it until its files are on disk.

    Args:
        cores: the client may use; None for all.
        digests: hex sha256 by file name, to compare what it brought (outside the clock); None for sizes alone.

    Returns: seconds, CPU seconds of client, server and machine, bytes of memory; keys carry their units.
    Raises:
        RunFailed: it ended with an error, or brought other bytes.
    """
    shutil.rmtree(place.scratch, ignore_errors=True)
    directory = place.scratch / "model"
    directory.mkdir(parents=True)
    try:
        served.warm()
        os.sync()  # what earlier runs left to be written is not this one's
        warm_free_pages(place.scratch / "hole", served.size_bytes + served.size_bytes // 4)
        server_before_s, machine_before = served.cpu_s(), psutil.cpu_times()
        took = _clocked(contender, contender.command(place.cache, served, directory), directory, cores)
        server_s, machine = served.cpu_s() - server_before_s, psutil.cpu_times()
        if contender.kind is not Kind.BOUND:
            _compare(contender, served, directory, digests)
    finally:
        shutil.rmtree(place.scratch, ignore_errors=True)
    gib = served.size_bytes / GIB
    cpu_to_exit_s = took["user_s"] + took["system_s"]
    cpu_s = cpu_to_exit_s + took.pop("sync_cpu_s")
    return {
        **took,
        "rate_gib_per_s": gib / took["wall_s"],
        "rate_to_exit_gib_per_s": gib / took["wall_to_exit_s"],
        "cpu_s": cpu_s,
        "cpu_s_per_gib": cpu_s / gib,
        "cpu_to_exit_s_per_gib": cpu_to_exit_s / gib,
        "server_cpu_s_per_gib": server_s / gib,
        "machine_busy_s": _busy_s(machine) - _busy_s(machine_before),
        "machine_iowait_s": machine.iowait - machine_before.iowait,
        "machine_steal_s": machine.steal - machine_before.steal,
    }


def _clocked(contender: Contender, command: Command, directory: Path, cores: set[int] | None) -> dict[str, Any]:
    log = directory.parent / "log"
    took = clocked(command.argv, {**command.environ, "HOME": str(directory.parent)}, directory, log, cores)
    said = log.read_text(errors="replace")
    if took.pop("exit_status") != 0:
        raise RunFailed(f"{contender.name} failed:\n{said[-4000:]}")
    if contender.kind is Kind.OURS:
        took |= json.loads(said.splitlines()[-1])
    return took


def clocked(argv: Sequence[str], environ: Mapping[str, str], destination: Path, log: Path, cores: set[int] | None = None) -> dict[str, Any]:
    """Run a program on these cores (None: on any) with its output added to `log`; its exit status and what `clock.py` saw.

    Raises:
        RunFailed: the clock itself failed.
    """
    order = {
        "argv": list(argv),
        "environ": dict(environ),
        "destination": str(destination),
        "log": str(log),
        "cores": sorted(cores) if cores else None,
    }
    command = [sys.executable, "-I", "-S", str(CLOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True) as clock:
        try:
            output, _ = clock.communicate(json.dumps(order), timeout=RUN_TIMEOUT_S)
        except BaseException:
            os.killpg(clock.pid, signal.SIGKILL)  # it leads a session of its own: with it ends the contender
            raise
    if clock.returncode != 0:
        raise RunFailed(f"{argv[0]}: the clock ended with {clock.returncode}")
    took: dict[str, Any] = json.loads(output)
    return took


def _compare(contender: Contender, served: Served, directory: Path, digests: dict[str, str] | None) -> None:
    found = {path.name: path for path in directory.rglob("*.safetensors")}
    sizes = {name: path.stat().st_size for name, path in found.items()}
    if sizes != {each.name: each.size_bytes for each in served.objects}:
        raise RunFailed(f"{contender.name} brought {sizes}")
    for name, digest in (digests or {}).items():
        if sha256(found[name]) != digest:
            raise RunFailed(f"{contender.name} brought other bytes as {name}")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _busy_s(times: Any) -> float:
    return float(times.user + times.nice + times.system + times.irq + times.softirq)
