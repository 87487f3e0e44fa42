"""Ctrl-C of a pull through the agent, and `top` on a real terminal."""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fcntl import ioctl

import pytest

from modelcache.agent.client import AgentClient
from modelcache.chunks import CHUNK_BYTES
from modelcache.errors import Cancelled, NotCached
from modelcache.fetch.progress import Progress
from modelcache.patience import Cancellation
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.polling import until
from tests.cli.conftest import WEIGHTS, stalled_from
from tests.cli.executable import DEADLINE_S, EXECUTABLE, started

LEAVE_ALTERNATE_SCREEN = b"\x1b[?1049l"
ENTER_ALTERNATE_SCREEN = b"\x1b[?1049h"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with agent(tmp_path_factory.mktemp("t")) as running:
        yield running


@pytest.fixture
def environ(node: RunningAgent) -> Mapping[str, str]:
    """Of a command that asks the agent: settings and credentials of its own would take it to the store."""
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CLOUDSDK_", "COLUMNS", "MODELCACHE_"))}
    return usual | {
        "MODELCACHE_CONFIG": os.devnull,
        "MODELCACHE_AGENT": str(node.admin),
        "MODELCACHE_ROOT": str(node.root),
        "TERM": "xterm",
    }


class Terminal:
    """Our side of a pseudo-terminal. `read_until` waits for content, never for time alone."""

    def __init__(self, ours: int) -> None:
        self._ours = ours
        self.shown = b""

    def read_until(self, text: bytes) -> None:
        """Until `text` comes after all that was waited for before."""
        at, until_s = len(self.shown), time.monotonic() + DEADLINE_S
        while text not in self.shown[at:]:
            ready, _, _ = select.select([self._ours], [], [], max(0.0, until_s - time.monotonic()))
            assert ready, f"{text!r} is not in {self.shown[at:]!r}"
            self.shown += os.read(self._ours, 65536)

    def read_on(self) -> None:
        """Until nobody has the other side any more."""
        with suppress(OSError):  # EIO
            while select.select([self._ours], [], [], DEADLINE_S)[0]:
                self.shown += os.read(self._ours, 65536)


def test_ctrl_c_ends_the_call_and_the_next_one_goes_on_from_there(node: RunningAgent, environ: Mapping[str, str]) -> None:
    with FaultServer() as server, AgentClient(node.admin) as client:
        server.put("/stalls", WEIGHTS)
        server.fail("/stalls", stalled_from(CHUNK_BYTES))
        url = f"{server.endpoint}/stalls"
        with started([EXECUTABLE, "--json", "pull", url], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            seen = []
            for line in process.stderr:
                seen.append(json.loads(line))
                if seen[-1].get("bytes_done") == CHUNK_BYTES:
                    break
            assert seen[-1].get("bytes_done") == CHUNK_BYTES, seen
            assert "store" not in {each["event"] for each in seen}
            [moving] = client.status(brief=True).moving
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=DEADLINE_S)
        assert (moving.uri, moving.phase, moving.bytes_done, moving.bytes_total) == (url, "fetching", CHUNK_BYTES, len(WEIGHTS))
        assert process.returncode == 130
        assert '{"event": "stopping"}' in err.splitlines()
        assert json.loads(out)["error"]["message"] == f"cancelled when 4.0 MiB of 9.0 MiB had come: {url}"
        with pytest.raises(NotCached):
            client.show(url)
        until(lambda: not client.status(brief=True).moving, "the fetch to end")  # who comes before joins it, and its stalled requests
        server.fail("/stalls", lambda call: call.reply(call.proper))
        looks: list[Progress] = []
        had = client.ensure(url, progress=looks.append)
        assert (had.snapshot.path / "stalls").read_bytes() == WEIGHTS
        assert (looks[-1].bytes_reused, looks[-1].bytes_fetched) == (CHUNK_BYTES, len(WEIGHTS) - CHUNK_BYTES)


def test_top_once_fits_a_narrow_terminal(node: RunningAgent, environ: Mapping[str, str]) -> None:
    ours, theirs = os.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    terminal = Terminal(ours)
    with FaultServer() as server, AgentClient(node.admin) as client:
        server.put("/small", b"x")
        client.ensure(f"{server.endpoint}/small")
        with started([EXECUTABLE, "top", "--once"], env=environ, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            terminal.read_on()
            assert process.wait(DEADLINE_S) == 0
    os.close(ours)
    assert f"\r\n  {server.endpoint}/small\r\n".encode() in terminal.shown


def test_top_is_drawn_anew_until_ctrl_c(node: RunningAgent, environ: Mapping[str, str]) -> None:
    """What moves changes: each frame is waited for by what only it can say."""
    ours, theirs = os.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    terminal, cancel = Terminal(ours), Cancellation()
    with FaultServer() as server, AgentClient(node.admin) as client, ThreadPoolExecutor(1) as threads:
        server.put("/stalls", WEIGHTS)
        server.fail("/stalls", stalled_from(0))
        with started([EXECUTABLE, "top", "--interval", "0.1"], env=environ, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            terminal.read_until(b"moving    0 models")
            fetch = threads.submit(client.ensure, f"{server.endpoint}/stalls", cancel=cancel)
            terminal.read_until(b"moving    1 model,")
            cancel.cancel()
            terminal.read_until(b"moving    0 models")
            process.send_signal(signal.SIGINT)
            terminal.read_on()
            assert process.wait(DEADLINE_S) == 0
        with pytest.raises(Cancelled):
            fetch.result()
    os.close(ours)
    assert terminal.shown.count(ENTER_ALTERNATE_SCREEN) == terminal.shown.count(LEAVE_ALTERNATE_SCREEN) == 1
    assert terminal.shown.index(ENTER_ALTERNATE_SCREEN) < terminal.shown.index(b"moving")
    assert terminal.shown.index(LEAVE_ALTERNATE_SCREEN) > terminal.shown.rindex(b"moving")
