"""Leases of volumes over restarts of the agent, with real bind mounts in a namespace of their own."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelcache.agent.client import AgentClient
from modelcache.agent.volumes import Volume
from modelcache.errors import DamagedRecord, InUse
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.servers.process import program

pytestmark = pytest.mark.root
ENVIRON = {"MODELCACHE_REFUSED_NETWORKS": "169.254.0.0/16"}
DEADLINE_S = 30


class Node:
    """A mount namespace, with the agents that run in it one after the other."""

    def __init__(self, directory: Path, pid: int) -> None:
        self._directory = directory
        self._enter = [program("nsenter"), f"--mount=/proc/{pid}/ns/mnt"]
        self.pods = directory / "pods"

    def target(self, name: str) -> Path:
        return self.pods / name / "mount"

    def run(self, *command: str) -> None:
        subprocess.run([*self._enter, program(command[0]), *command[1:]], check=True, timeout=DEADLINE_S)

    @contextmanager
    def agent(self) -> Iterator[tuple[RunningAgent, AgentClient]]:
        options = ["--pods-dir", str(self.pods), "--volume-grace", "0"]
        with agent(self._directory, ENVIRON, options=options, through=self._enter) as running, AgentClient(running.admin) as client:
            yield running, client


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Ends with its namespace, and that with its last process."""
    command = [program("unshare"), "--mount", "--propagation", "private", program("cat")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        keeper.stdin.write(b"x")
        keeper.stdin.flush()
        assert keeper.stdout.read(1) == b"x"  # it is in its namespace
        made = Node(tmp_path, keeper.pid)
        made.target("own").mkdir(parents=True)
        made.run("mount", "-t", "tmpfs", "tmpfs", str(made.target("own")))  # as the token of the agent's own pod
        yield made
        keeper.stdin.close()


def holders(client: AgentClient) -> list[str]:
    return sorted(lease.holder for info in client.list() for lease in info.leases)


def test_leases_follow_the_mounts_and_not_their_files(node: Node, tmp_path: Path) -> None:
    names = ("mounted", "prepared", "gone")
    volumes = {name: Volume(f"csi-{name}", node.target(name)) for name in names}
    with FaultServer() as server:
        uris = {name: f"{server.endpoint}/m/{name}" for name in names}
        with node.agent() as (running, client):
            for name in names:
                server.put(f"/m/{name}", name.encode() * 1000)
                had = client.ensure(uris[name], lease=(volumes[name].holder, 3600.0))
                if name != "gone":
                    node.target(name).mkdir(parents=True)
                if name == "mounted":
                    node.run("mount", "--bind", str(had.snapshot.path), str(node.target(name)))
            assert len(holders(client)) == 3
            running.end(signal.SIGKILL)
        for path in (tmp_path / "store" / "leases").glob("lease-*"):
            if b"csi-mounted" in path.read_bytes():
                path.unlink()

        found = f"mount:{node.target('mounted')}"
        with node.agent() as (_, client):
            assert holders(client) == [found, volumes["prepared"].holder]
            for name in names[:2]:
                with pytest.raises(InUse, match=name):
                    client.evict(uris[name])
            client.evict(uris["gone"])
            for path in (tmp_path / "store" / "leases").glob("lease-*"):
                path.unlink()
            with pytest.raises(InUse, match=found):
                client.evict(uris["mounted"])  # the mount itself keeps it
            node.run("umount", str(node.target("own")))
            node.run("umount", str(node.target("mounted")))
            with pytest.raises(DamagedRecord, match="no mount is seen"):
                client.evict(uris["mounted"])
            node.run("mount", "-t", "tmpfs", "tmpfs", str(node.target("own")))
            client.evict(uris["mounted"])


def test_a_volume_that_was_unmounted_while_nobody_looked_is_let_go(node: Node) -> None:
    with FaultServer() as server:
        uri = f"{server.endpoint}/m/weights"
        server.put("/m/weights", b"w" * 1000)
        target = node.target("pod")
        with node.agent() as (running, client):
            had = client.ensure(uri, lease=(Volume("csi", target).holder, 1.0))
            target.mkdir(parents=True)
            node.run("mount", "--bind", str(had.snapshot.path), str(target))
            running.end(signal.SIGTERM)
        with node.agent() as (running, client):
            [held] = {lease.holder for info in client.list() for lease in info.leases}
            assert str(target) in held
            running.end(signal.SIGTERM)
        node.run("umount", str(target))
        target.rmdir()
        with node.agent() as (_, client):
            assert holders(client) == []
            client.evict(uri)
