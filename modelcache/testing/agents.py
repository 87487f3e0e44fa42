"""A real agent process for tests, and clients of it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from modelcache.agent.client import AgentClient
from modelcache.agent.watermarks import Watermarks
from modelcache.errors import AgentUnreachable
from modelcache.testing.servers.ports import LOOPBACK, free_ports
from modelcache.testing.servers.process import OwnedProcess, started

ROOMY = {"MODELCACHE_HIGH_WATERMARK": "1", "MODELCACHE_LOW_WATERMARK": "1"}
"""A node whose disk is as full as that of whoever runs the tests."""
START_DEADLINE_S = 60.0
END_DEADLINE_S = 60.0


@dataclass(frozen=True)
class RunningAgent:
    """An agent process with both sockets."""

    process: OwnedProcess
    root: Path
    admin: Path
    driver: Path
    http: str

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send the agent a signal, and wait until it has ended. Raises psutil.TimeoutExpired."""
        processes = [psutil.Process(pid) for pid in self.process.pids()]
        for each in processes:
            each.send_signal(number)
        for each in processes:
            each.wait(END_DEADLINE_S)


@contextmanager
def agent(
    directory: Path,
    environ: Mapping[str, str] | None = None,
    *,
    root: Path | None = None,
    options: Sequence[str] = (),
    through: Sequence[str] = (),
) -> Iterator[RunningAgent]:
    """An agent for the block, killed at its end.

    Args:
        directory: short, for its sockets are below.
        through: a command that becomes what follows it, such as one that enters a namespace.
    """
    root = root or directory / "store"
    admin, driver = directory / "a.sock", directory / "d.sock"
    [port] = free_ports(1)
    sockets = ["--socket", str(admin), "--driver-socket", str(driver), "--http", f"{LOOPBACK}:{port}"]
    command = [*through, sys.executable, "-m", "daemonset", "--root", str(root), *sockets, *options]
    here = Path(__file__).parents[2]

    def launch() -> OwnedProcess:
        return OwnedProcess(
            command,
            log=directory / "agent.log",
            environ=ROOMY | {"HOME": str(directory), "PYTHONPATH": str(here), **(environ or {})},
        )

    def ready() -> bool:
        try:
            with AgentClient(admin) as client:
                client.status()
        except AgentUnreachable:
            return False
        return True

    process = started(launch, ready, deadline_s=START_DEADLINE_S)
    try:
        yield RunningAgent(process, root, admin, driver, f"http://{LOOPBACK}:{port}")
    finally:
        process.stop()


def watermarks_of(client: AgentClient) -> Watermarks:
    """Those that the agent has in force."""
    found = client.status(brief=True).watermarks
    assert found is not None
    return found
