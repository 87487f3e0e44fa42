"""A server process that this process owns: readiness by polling, a log, and an end that nothing prevents."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from modelcache.patience import Deadline

KEEPER = Path(__file__).with_name("keeper.py")
POLL_S = 0.02
STOP_DEADLINE_S = 30
TRIES = 4
"""Starts on fresh ports before giving up: somebody may take a port between its choice and its use."""


class ServerFailed(Exception):
    """A server of a test did not start; the message holds the end of its log."""


class OwnedProcess:
    """A program in a session of its own, killed (SIGKILL, with its children) by `stop`, and when this process ends in any way.

    Args:
        command: program and arguments; no secret in it, since other users can read it.
        log: file that its output is added to.
        leftovers: files and directories that it doesn't remove when it is killed; gone after its end.
        environ: its whole environment, but for PATH.
    """

    def __init__(
        self, command: Sequence[str], *, log: Path, leftovers: Sequence[str] = (), environ: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        self._name = command[0]
        keeper = [sys.executable, "-I", "-S", str(KEEPER), str(len(leftovers)), *leftovers]
        with log.open("ab") as output:
            self._keeper = subprocess.Popen(
                [*keeper, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={"PATH": os.environ.get("PATH", os.defpath), **(environ or {})},
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self._keeper.poll() is None

    def pids(self) -> list[int]:
        """The program and its children, for measurements of what they use."""
        return [pid for pid in _pids_of_session(self._keeper.pid) if pid != self._keeper.pid]

    def log_tail(self, limit_bytes: int = 4000) -> str:
        data = self.log.read_bytes() if self.log.exists() else b""
        return data[-limit_bytes:].decode(errors="replace")

    def stop(self) -> None:
        """Kill it and wait until it is gone. Idempotent."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        try:
            self._keeper.wait(timeout=STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
            raise ServerFailed(f"did not end within {STOP_DEADLINE_S} s of SIGKILL: {self._name}") from None


def started(launch: Callable[[], OwnedProcess], ready: Callable[[], bool], *, deadline_s: float) -> OwnedProcess:
    """Launch a server and poll until `ready()`; one that ends by itself is launched again, on fresh ports, at most TRIES times.

    Raises:
        ServerFailed: it ended every time, or was not ready within `deadline_s`.
    """
    deadline = Deadline.after(deadline_s)
    process = launch()
    tries = 1
    try:
        while not ready():
            if deadline.passed:
                raise ServerFailed(f"not ready within {deadline_s:g} s: {process.log_tail()}")
            if not process.alive:
                if tries == TRIES:
                    raise ServerFailed(f"ended by itself, {TRIES} times: {process.log_tail()}")
                process.stop()
                process = launch()
                tries += 1
            time.sleep(POLL_S)
    except BaseException:
        process.stop()
        raise
    return process


def program(name: str) -> str:
    """Path of an installed program: beside this interpreter (a wheel's scripts), or on PATH and in the usual sbin directories.

    Raises:
        ServerFailed: it is not installed.
    """
    beside = Path(sys.executable).parent
    places = os.pathsep.join([str(beside), os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    found = shutil.which(name, path=places)
    if found is None:
        raise ServerFailed(f"program `{name}` is not installed (looked in {places})")
    return found


def _pids_of_session(session: int) -> list[int]:
    pids = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session:  # proc(5): field 6, session, is the fourth after the name
                    pids.append(int(entry.name))
    return sorted(pids)
