"""Ctrl-C and SIGTERM, on real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from modelcache.chunks import CHUNK_BYTES
from modelcache.testing.fault_server import FaultServer
from tests.cli.conftest import WEIGHTS, stalled_from
from tests.cli.executable import DEADLINE_S, EXECUTABLE, Executable, started


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_pull_and_the_next_one_goes_on_from_there(cli: Executable, server: FaultServer, number: signal.Signals) -> None:
    server.put("/model.bin", WEIGHTS)
    server.fail("/model.bin", stalled_from(CHUNK_BYTES))
    url = f"{server.endpoint}/model.bin"
    with cli.start("--json", "pull", url, stdout=PIPE, stderr=PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if json.loads(line).get("bytes_done") == CHUNK_BYTES:
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE_S)
    server.fail("/model.bin", lambda call: call.reply(call.proper))
    again = cli("--json", "pull", url).document["snapshots"][0]

    assert process.returncode == 130
    assert '{"event": "stopping"}' in err.splitlines()
    error = json.loads(out)["error"]
    assert error["code"] == "cancelled"
    assert error["message"] == f"cancelled when 4.0 MiB of 9.0 MiB had come: {url}"
    assert (again["reused_bytes"], again["fetched_bytes"]) == (CHUNK_BYTES, len(WEIGHTS) - CHUNK_BYTES)


def test_people_are_told_what_ctrl_c_kept(cli: Executable, server: FaultServer) -> None:
    server.put("/model.bin", WEIGHTS)
    server.fail("/model.bin", stalled_from(0))
    with cli.start("pull", f"{server.endpoint}/model.bin", stdout=PIPE, stderr=PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline().endswith(": resolving\n")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_S)

    assert (process.returncode, out) == (130, "")
    assert "stopping; what was fetched is kept" in err
    assert err.splitlines()[-2].startswith("error: cancelled")
    assert err.splitlines()[-1].startswith("hint: ")


DEAF = """
import sys
from modelcache.cli.interrupts import cancelled_by_signals
from modelcache.cli.output import Output, Style
from modelcache.patience import Cancellation
with cancelled_by_signals(Cancellation(), Output(Style(), out=sys.stdout, err=sys.stderr)):
    print("ready", flush=True)
    while True:  # work that doesn't hear the cancellation
        sys.stdin.read(1)
"""

CLEANING = """
import sys
from contextlib import suppress
from modelcache.cli.interrupts import cancelled_by_signals
from modelcache.cli.output import Output, Style
from modelcache.errors import Cancelled
from modelcache.patience import Cancellation
cancel = Cancellation()
with cancelled_by_signals(cancel, Output(Style(), out=sys.stdout, err=sys.stderr)), suppress(Cancelled):
    print("ready", flush=True)
    cancel.wait(100)
print("cleaning", flush=True)
while True:
    sys.stdin.read(1)
"""

TELLING = """
import sys
from modelcache.cli import app, main
def told(session, error):
    print("cleaning", flush=True)
    while True:
        sys.stdin.read(1)
app.report = told
sys.exit(main.main(["pull", "-"]))
"""


ASLEEP = """
import signal, sys, threading
from modelcache.cli.interrupts import cancelled_by_signals
from modelcache.cli.output import Output, Style
from modelcache.patience import Cancellation
cancel, done = Cancellation(), threading.Event()
with cancelled_by_signals(cancel, Output(Style(), out=sys.stdout, err=sys.stderr)), cancel.on_cancel(done.set):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])  # as one that came just before it slept: it isn't woken
    print("ready", flush=True)
    done.wait()
    print("cancelled", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_though_the_main_thread_sleeps(number: signal.Signals) -> None:
    with started([sys.executable, "-c", ASLEEP], stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (0, "cancelled\n")
    assert "once more ends at once" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_a_process_that_does_not_stop(number: signal.Signals) -> None:
    with started([sys.executable, "-c", DEAF], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stderr.readline() == "\n"
        assert "once more ends at once" in process.stderr.readline()
        process.send_signal(number)
        process.wait(DEADLINE_S)

    assert process.returncode == -number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", [CLEANING, TELLING])
def test_the_second_signal_ends_a_command_that_was_stopped_and_cleans_up(program: str, number: signal.Signals) -> None:
    with started([sys.executable, "-c", program], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None
        if program is CLEANING:
            assert process.stdout.readline() == "ready\n"
        else:
            wait_until_stdin_is_read(process.pid)
        process.send_signal(number)
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE_S)

    assert (process.returncode, out) == (-number, "")
    assert "Traceback" not in err


INTERRUPTING = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
"""


@pytest.mark.parametrize(("command", "name"), [([EXECUTABLE], "typer"), ([sys.executable, "-m", "modelcache"], "modelcache.cli.main")])
def test_ctrl_c_while_the_command_line_is_imported_is_no_traceback(tmp_path: Path, command: list[str | Path], name: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING.format(name=name))  # Python imports it at its start
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run([*command, "--version"], env=environ, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (ran.returncode, ran.stdout, ran.stderr) == (-signal.SIGINT, "", "")


IGNORED = """
import signal, sys
from modelcache.cli.interrupts import cancelled_by_signals, interrupted_by_signals
from modelcache.cli.output import Output, Style
from modelcache.patience import Cancellation
with interrupted_by_signals(), cancelled_by_signals(Cancellation(), Output(Style(), out=sys.stdout, err=sys.stderr)):
    print(*(signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGINT, signal.SIGTERM)))
"""


@pytest.mark.parametrize(("ignored", "stays"), [("INT", "True False"), ("TERM", "False True"), ("INT TERM", "True True")])
def test_a_signal_that_is_ignored_stays_so(ignored: str, stays: str) -> None:
    """As a shell's background jobs have it, which Ctrl-C must not end."""
    trap = ["sh", "-c", f'trap "" {ignored}; exec "$@"', "sh"]
    ran = subprocess.run([*trap, sys.executable, "-c", IGNORED], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert ran.stdout.strip() == stays


def test_a_signal_outside_of_long_work_is_a_cancelled_command(cli: Executable) -> None:
    """`pull -` waits for stdin."""
    with cli.start("--json", "pull", "-", "-v", stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        wait_until_stdin_is_read(process.pid)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=DEADLINE_S)

    assert (process.returncode, err) == (130, "")
    assert json.loads(out)["error"]["code"] == "cancelled"


def wait_until_stdin_is_read(pid: int) -> None:
    """Until the process sleeps in read(2) of its stdin."""
    watch = subprocess.run(
        ["bash", "-c", f"until read -r call first rest < /proc/{pid}/syscall && [[ $call == 0 && $first == 0x0 ]]; do :; done"],
        timeout=DEADLINE_S,
        check=False,
    )
    assert watch.returncode == 0
