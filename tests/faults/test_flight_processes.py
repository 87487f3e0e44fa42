"""`modelcache pull` in several processes at once, from a real server; a process that is stopped; ten thousand small files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import modelcache.fetch.elsewhere
from modelcache.chunks import CHUNK_BYTES
from modelcache.patience import Deadline
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.fetching import finish, request_for, running_engine
from modelcache.testing.memory_source import MemorySource, state_sha256
from modelcache.testing.servers import Nginx
from modelcache.testing.servers.nginx import NginxOptions
from modelcache.testing.store_filling import content, digest_of
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import MIB

DEADLINE_S = 100
PULL = [sys.executable, "-c", "import sys; from modelcache.cli.main import main; sys.exit(main())", "--json", "pull"]
WEIGHTS = content(20 * MIB + 5, seed=1)
IN_FLIGHT_BYTES = CHUNK_BYTES + 8 * MIB
"""What one killed process had asked for and not marked: a chunk, and what the sockets of both ends hold (tcp_rmem, tcp_wmem)."""


class Pulls:
    """Processes that pull into one store; ended with the test."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self._home = directory
        self._running: list[subprocess.Popen[str]] = []

    def begin(self, uri: str) -> subprocess.Popen[str]:
        environ = {**os.environ, "MODELCACHE_ROOT": str(self.root), "MODELCACHE_REQUESTS": "1", "HOME": str(self._home)}
        process = subprocess.Popen([*PULL, uri], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._running.append(process)
        return process

    def fetched_bytes(self, process: subprocess.Popen[str]) -> int:
        """Wait for its end."""
        shown, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, errors
        [snapshot] = json.loads(shown)["snapshots"]
        return int(snapshot["fetched_bytes"])

    def await_marks(self, count: int) -> None:
        """Until somebody has so many chunks."""
        deadline = Deadline.after(DEADLINE_S)
        while not any(path.stat().st_size >= count * 64 for path in self._journals()):
            assert not deadline.passed
            with suppress(subprocess.TimeoutExpired):
                self._running[0].wait(0.005)

    def _journals(self) -> list[Path]:
        return sorted((self.root / "ingest").glob("*/journal"))

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.communicate()


@pytest.fixture
def pulls(tmp_path: Path) -> Iterator[Pulls]:
    with ExitStack() as stack:
        found = Pulls(tmp_path)
        stack.callback(found.close)
        yield found


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    served = tmp_path / "served"
    served.mkdir()
    (served / "weights.bin").write_bytes(WEIGHTS)
    slowly = f'location /weights {{ limit_rate 8m; root "{served}"; }}'
    with Nginx(served, NginxOptions(more=slowly)) as running:
        yield running


def served_bytes(nginx: Nginx) -> int:
    """Without the requests for one byte, by which each process asks what it is."""
    return sum(request.body_bytes for request in nginx.requests() if request.method == "GET" and request.body_bytes > 1)


def test_three_pulls_and_one_fetch(pulls: Pulls, nginx: Nginx) -> None:
    uri = f"{nginx.endpoint}/weights.bin"
    fetched = [pulls.fetched_bytes(process) for process in [pulls.begin(uri) for _ in range(3)]]
    assert sorted(fetched) == [0, 0, len(WEIGHTS)]
    assert served_bytes(nginx) == len(WEIGHTS)
    assert audit(pulls.root, Moment.CRASHED) == []
    assert list((pulls.root / "ingest").iterdir()) == []


def test_the_one_that_fetches_is_killed(pulls: Pulls, nginx: Nginx) -> None:
    uri = f"{nginx.endpoint}/weights.bin"
    first = pulls.begin(uri)
    pulls.await_marks(2)
    second = pulls.begin(uri)
    first.kill()
    kept_bytes = len(WEIGHTS) - pulls.fetched_bytes(second)
    assert kept_bytes >= 2 * CHUNK_BYTES
    assert served_bytes(nginx) <= len(WEIGHTS) + IN_FLIGHT_BYTES
    [blob] = [path for path in (pulls.root / "blobs").rglob("*") if path.is_file()]
    assert blob.name == digest_of(WEIGHTS).hex
    assert blob.read_bytes() == WEIGHTS
    assert list((pulls.root / "ingest").iterdir()) == []


STOPPED = """
import sys
from pathlib import Path
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import *
from modelcache.testing.store_fixtures import NO_LIMITS
files = {"a": content(3 << 22, seed=5), "b": content(1 << 20, seed=6)}
ingest = LocalStore(Path(sys.argv[1]), NO_LIMITS).ingest(ref_of(files).key, wanted(files, known=True))
write_chunks(ingest.files[0], files["a"], [0])
print("ready", flush=True)
input()
complete_all(ingest, files)
ingest.publish(manifest_of(files), ref_of(files))
"""


def test_a_stopped_process_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelcache.fetch.elsewhere, "STALL_S", 0.3)
    root = tmp_path / "root"
    store = LocalStore(root, NO_LIMITS)
    files = {"a": content(3 << 22, seed=5), "b": content(1 << 20, seed=6)}
    source = MemorySource(files, state=state_sha256)
    command = [sys.executable, "-c", STOPPED, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGSTOP)
            request = request_for(store, source)
            assert [file.claimed for file in request.ingest.files] == [False, False]
            with running_engine(2) as engine:
                finish(engine.start(request))
            assert source.books.bytes == {path: len(data) for path, data in files.items()}
            request.ingest.keep()
            process.send_signal(signal.SIGCONT)
            process.communicate("\n", timeout=DEADLINE_S)
            assert process.returncode == 0
        finally:
            process.kill()
    [shown] = store.list()
    assert {path: (shown.path / path).read_bytes() for path in files} == files
    assert audit(root, Moment.CRASHED) == []
    assert sum(path.is_file() for path in (root / "blobs").rglob("*")) == len(files)


def many(directory: Path, count: int) -> int:
    """So many files of their own bytes; how many bytes in all."""
    size_bytes = 0
    for number in range(count):
        target = directory / f"{number % 100:02}" / f"{number}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        size_bytes += target.write_text(json.dumps({"number": number}))
    return size_bytes


def pull_many(pulls: Pulls, origin: Path, count: int) -> None:
    size_bytes = many(origin, count)
    uri = f"file://{origin}"
    assert sum(pulls.fetched_bytes(process) for process in [pulls.begin(uri), pulls.begin(uri)]) == size_bytes
    assert audit(pulls.root, Moment.CRASHED) == []
    assert list((pulls.root / "ingest").iterdir()) == []
    assert sum(path.is_file() for path in (pulls.root / "blobs").rglob("*")) == count
    assert len(list((pulls.root / "claims").iterdir())) == 16


def test_many_small_files_and_two_pulls(pulls: Pulls, tmp_path: Path) -> None:
    pull_many(pulls, tmp_path / "origin", 300)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ten_thousand_small_files_and_two_pulls(pulls: Pulls, tmp_path: Path) -> None:
    pull_many(pulls, tmp_path / "origin", 10_000)
