"""The real agent on a small disk that is full, can't be written, or is gone: it says so, serves what it can, and goes on afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from urllib.error import HTTPError

import pytest

from modelcache.agent.client import AgentClient
from modelcache.errors import InUse, ModelCacheError, NoSpace, StoreError, StoreReadOnly
from modelcache.refresh import Refresh
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.audit import Moment, audit
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.servers.process import program
from modelcache.units import MIB
from tests.conftest import SmallDisk

pytestmark = pytest.mark.root
DISK_BYTES = 64 * MIB
DEADLINE_S = 60


@pytest.fixture
def disk(small_disk: SmallDisk) -> Path:
    return small_disk(size_bytes=DISK_BYTES)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as made:
        for name, size_bytes in (("here", 20 * MIB), ("large", 50 * MIB), ("small", MIB)):
            made.put(f"/m/{name}", name.encode() * (size_bytes // len(name)))
        yield made


@contextmanager
def mounted(*arguments: str, undone: tuple[str, ...]) -> Iterator[None]:
    subprocess.run([program("mount"), *arguments], check=True, timeout=DEADLINE_S)
    try:
        yield
    finally:
        subprocess.run([program(undone[0]), *undone[1:]], check=True, timeout=DEADLINE_S)


def free_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def get(node: RunningAgent, path: str) -> str:
    try:
        with urllib.request.urlopen(node.http + path, timeout=DEADLINE_S) as answer:
            return str(answer.read().decode())
    except HTTPError as error:
        with error:
            return error.read().decode() if error.code == HTTPStatus.SERVICE_UNAVAILABLE else str(error)


def ready(node: RunningAgent) -> str:
    return get(node, "/readyz").strip()


def filled(path: Path) -> None:
    """Written to until there is no room left."""
    with path.open("wb", buffering=0) as file:
        for size_bytes in (MIB, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size_bytes))


def test_a_full_disk_is_told_with_numbers_and_holders(tmp_path: Path, disk: Path, server: FaultServer) -> None:
    root = disk / "store"
    with agent(tmp_path, root=root) as node, AgentClient(node.admin) as client:
        here, large, small = (f"{server.endpoint}/m/{name}" for name in ("here", "large", "small"))
        had = client.ensure(here, lease=("pod-1", 600.0))
        assert had.lease is not None
        before = free_bytes(disk)
        with pytest.raises(NoSpace, match="pod-1") as told:
            client.ensure(large)
        assert told.value.needed_bytes > told.value.available_bytes
        assert told.value.held_bytes == 20 * MIB
        assert free_bytes(disk) == before
        filled(disk / "of-somebody-else")
        with pytest.raises(NoSpace):
            client.ensure(small)
        assert client.ensure(here).snapshot == had.snapshot
        assert client.ensure(here, refresh=Refresh.ALWAYS).snapshot == had.snapshot
        assert client.verify(here).damages == ()
        with pytest.raises(InUse):
            client.evict(here)
        assert client.release(had.lease.id)
        assert (client.ensure(small).snapshot.path / "small").stat().st_size == 5 * (MIB // 5)  # in the place of what nobody holds
        node.end(signal.SIGKILL)
    (root / "agent").write_bytes(b"")
    filled(disk / "the-rest")
    with agent(tmp_path, root=root) as node, AgentClient(node.admin) as client:
        assert client.ensure(small).snapshot.path.is_dir()  # who begins anew on a full disk serves what is here
        for other in ("of-somebody-else", "the-rest"):
            (disk / other).unlink()
        assert client.ensure(large).snapshot.path.is_dir()
    assert audit(root, Moment.CRASHED) == []


def test_a_disk_that_becomes_read_only_serves_what_is_here(tmp_path: Path, disk: Path, server: FaultServer) -> None:
    """As ext4 does it when the disk under it fails."""
    with agent(tmp_path, root=disk / "store") as node, AgentClient(node.admin) as client:
        here, small = (f"{server.endpoint}/m/{name}" for name in ("here", "small"))
        had = client.ensure(here)
        subprocess.run([program("mount"), "-o", "remount,abort", str(disk)], check=True, timeout=DEADLINE_S)
        assert client.ensure(here).snapshot == had.snapshot
        assert client.verify(here).damages == ()
        writes: tuple[Callable[[], object], ...] = (
            lambda: client.ensure(small),
            lambda: client.pin(here),
            lambda: client.lease(here, holder="pod", ttl_s=60.0),
            lambda: client.evict(here),
        )
        for write in writes:
            with pytest.raises(StoreReadOnly):
                write()
        assert client.ensure(here).snapshot == had.snapshot
        assert ready(node) == "store-read-only"
    with agent(tmp_path, root=disk / "store") as node, AgentClient(node.admin) as client:
        assert client.ensure(here).snapshot == had.snapshot


def test_a_disk_that_is_gone_is_told_and_nothing_is_made_in_its_place(tmp_path: Path, disk: Path, server: FaultServer) -> None:
    """Another file system over it, empty, is what the directory of a disk that isn't mounted looks like."""
    root = disk / "store"
    with agent(tmp_path, root=root) as node, AgentClient(node.admin) as client:
        here, small = (f"{server.endpoint}/m/{name}" for name in ("here", "small"))
        had = client.ensure(here, lease=("pod", 600.0))
        with mounted("-t", "tmpfs", "tmpfs", str(disk), undone=("umount", str(disk))):
            for ask in (
                lambda: client.ensure(here),
                lambda: client.ensure(small),
                lambda: client.pin(here),
                lambda: client.evict(here),
                lambda: client.verify(),
            ):
                with pytest.raises(ModelCacheError) as told:
                    ask()
                assert isinstance(told.value, StoreError), told.value
            assert client.status(brief=True).draining is False
            assert ready(node) == "store-fault"
            assert "modelcache_refusals_total" in get(node, "/metrics")
            assert list(disk.iterdir()) == []
        assert ready(node) == "ok"
        again = client.ensure(here)
        assert again.snapshot == had.snapshot
        assert [lease.id for info in client.list() for lease in info.leases] == [had.lease and had.lease.id]
        assert client.ensure(small).snapshot.path.is_dir()
    assert audit(root, Moment.CRASHED) == []
