"""Progress: paced lines, JSON lines, and bars on a real terminal."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.chunks import CHUNK_BYTES
from modelcache.cli.progress_view import LINE_INTERVAL_S, Look, PacedView, Reading, line_of, look_of_fetch
from modelcache.fetch.progress import Phase, Progress
from modelcache.testing import faults
from modelcache.testing.fault_server import FaultServer
from modelcache.units import GIB, MIB
from tests.cli.conftest import WEIGHTS, stalled_from
from tests.cli.executable import DEADLINE_S, EXECUTABLE, Executable

HALFWAY = Progress(
    uri="s3://m/llama",
    phase=Phase.FETCHING,
    bytes_total=4 * GIB,
    bytes_done=GIB,
    bytes_fetched=GIB - 512 * MIB,
    bytes_reused=512 * MIB,
    files_total=7,
    files_done=3,
    rate_bytes_per_s=256 * MIB,
    eta_s=12.0,
    elapsed_s=2.0,
)


def test_a_line_says_phase_share_bytes_rate_time_left_and_what_was_reused() -> None:
    expected = "s3://m/llama: fetching 25%, 1.0 GiB of 4.0 GiB, 256.0 MiB/s, 12.0 s left, 512.0 MiB reused, 3/7 files"

    assert line_of(look_of_fetch(HALFWAY)) == expected


def test_a_wait_is_told_with_its_reason_whatever_is_known_besides() -> None:
    why = "waiting 12.0 s: the origin is busy (503)"
    resolving = Progress(uri="s3://m/llama", phase=Phase.RESOLVING, waiting=why)

    assert line_of(look_of_fetch(resolving)) == f"s3://m/llama: resolving, {why}"
    assert f"12.0 s left, {why}, 512.0 MiB reused" in line_of(look_of_fetch(replace(HALFWAY, waiting=why)))
    assert look_of_fetch(resolving).fields["waiting"] == why


def test_a_line_leaves_out_what_is_not_known() -> None:
    assert line_of(look_of_fetch(Progress(uri="s3://m/llama", phase=Phase.RESOLVING))) == "s3://m/llama: resolving"
    assert "left" not in line_of(look_of_fetch(replace(HALFWAY, eta_s=None)))
    assert "/s" not in line_of(look_of_fetch(replace(HALFWAY, rate_bytes_per_s=0.0)))


@given(steps=st.lists(st.tuples(st.sampled_from(["resolving", "fetching", "publishing"]), st.floats(0, 10)), max_size=60))
def test_lines_come_with_each_phase_and_at_most_once_per_interval(steps: list[tuple[str, float]]) -> None:
    now_s = 0.0
    written: list[tuple[float, str]] = []
    view = PacedView(lambda look: written.append((now_s, look.phase)), LINE_INTERVAL_S, clock=lambda: now_s)
    shown = []
    for phase, passed_s in steps:
        now_s += passed_s
        shown.append(phase)
        view.show(Look("x", phase, 0, 0, None, None))

    assert [phase for phase, _ in groupby(phase for _, phase in written)] == [phase for phase, _ in groupby(shown)]
    for (early_s, early), (late_s, late) in pairwise(written):
        assert early != late or late_s - early_s >= LINE_INTERVAL_S - 1e-6  # sums of floats


def test_a_wait_is_told_at_once_and_many_of_them_only_now_and_then() -> None:
    now_s = 100.0
    written: list[tuple[float, str | None]] = []
    view = PacedView(lambda look: written.append((now_s, look.waiting)), LINE_INTERVAL_S, clock=lambda: now_s)
    for tenth in range(100):
        now_s = 100.0 + tenth / 10
        view.show(Look("x", "fetching", 0, 0, None, None, waiting="waiting" if tenth % 10 == 3 else None))

    assert written == [(100.0, None), (100.3, "waiting"), (105.3, "waiting")]


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_pull_that_waits_for_a_busy_origin_says_so(cli: Executable, server: FaultServer, arguments: tuple[str, ...]) -> None:
    """The origin is busy until it was said."""
    server.put("/model.bin", WEIGHTS)
    server.fail("/model.bin", faults.status(503, {"Retry-After": "1"}))
    with cli.start("pull", *arguments, f"{server.endpoint}/model.bin", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as pull:
        assert pull.stderr is not None
        said = next(line for line in pull.stderr if "waiting " in line)
        server.fail("/model.bin", faults.status(500), times=0)  # it is well again
        pull.communicate(timeout=DEADLINE_S)

    assert re.search(r"waiting [\d.]+ m?s: the origin is busy \(503 Service Unavailable\)", said)
    assert pull.returncode == 0


def test_reading_tells_rate_and_time_left_once_they_mean_something() -> None:
    now_s = 90.0
    reading = Reading("everything", clock=lambda: now_s)
    now_s = 100.0
    reading.look(0, 0)
    first = reading.look(10, 100)
    now_s = 102.0
    small_ones_first = reading.look(10, 10_000)
    second = reading.look(50, 100)

    assert (first.rate_bytes_per_s, first.eta_s) == (None, None)
    assert (small_ones_first.rate_bytes_per_s, small_ones_first.eta_s) == (5.0, None)
    assert (second.rate_bytes_per_s, second.eta_s) == (25.0, 2.0)


# -- a real terminal ------------------------------------------------------------------------------------------------

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@contextmanager
def terminal(columns: int) -> Iterator[tuple[int, int]]:
    """A pseudo terminal: the end that a person reads, and the end that a program writes to."""
    reader, writer = os.openpty()
    try:
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def on_terminal(cli: Executable, columns: int, *arguments: object, **variables: str) -> tuple[int, str]:
    """Exit code, and all that the terminal got."""
    environ = cli.variables(**{"TERM": "xterm-256color", **variables})
    del environ["COLUMNS"]
    with terminal(columns) as (reader, writer):
        with subprocess.Popen([EXECUTABLE, *map(str, arguments)], env=environ, stdin=writer, stdout=writer, stderr=writer) as process:
            got = b""
            while process.poll() is None or _waiting(reader):
                got += os.read(reader, 65536) if _waiting(reader) else b""
        return process.returncode, got.decode()


def _waiting(reader: int) -> bool:
    size = bytearray(4)
    fcntl.ioctl(reader, termios.FIONREAD, size)
    return int.from_bytes(size, "little") > 0


def plain(text: str) -> str:
    return _CONTROL.sub("", text)


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_bars_fit_the_terminal_and_are_cleared(cli: Executable, server: FaultServer, columns: int) -> None:
    server.put("/model.bin", WEIGHTS)
    server.fail("/model.bin", stalled_from(CHUNK_BYTES))
    url = f"{server.endpoint}/model.bin"
    patience = {"MODELCACHE_STALL_TIMEOUT_S": "1", "MODELCACHE_RETRY_DEADLINE_S": "1"}

    code, got = on_terminal(cli, columns, "pull", url, **patience)

    assert code == 5
    assert "━" in got
    assert " 44%" in got
    assert "4.0 MiB of 9.0 MiB" in got
    drawn = [line for line in re.split(r"[\r\n]+", plain(got)) if not line.startswith(("error:", "hint:"))]
    assert max(map(len, drawn)) <= columns
    assert got.rindex("\x1b[2K") < got.index("error:")  # cleared before the error
    assert got.count("\x1b[?25l") == got.count("\x1b[?25h") == 1  # the cursor is back
    assert "\x1b[1;31merror:\x1b[0m" in got


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_a_terminal_as_it_was(cli: Executable, server: FaultServer, times: int) -> None:
    server.put("/model.bin", WEIGHTS)
    server.fail("/model.bin", stalled_from(CHUNK_BYTES))
    url = f"{server.endpoint}/model.bin"
    with terminal(100) as (reader, writer), cli.start("pull", url, stdin=writer, stdout=writer, stderr=writer) as process:
        got = ""
        while "44%" not in got:
            got += os.read(reader, 65536).decode()
        for _ in range(times):
            process.send_signal(signal.SIGINT)
        process.wait(DEADLINE_S)
        while _waiting(reader):
            got += os.read(reader, 65536).decode()

    assert process.returncode in ((130,) if times == 1 else (130, -signal.SIGINT))
    assert got.count("\x1b[?25l") == got.count("\x1b[?25h") == 1
    if times == 1:
        end = plain(got[got.rindex("\x1b[2K") :]).splitlines()
        assert end[0].startswith("error: cancelled when 4.0 MiB of 9.0 MiB had come")
        assert len(end) == 2


@pytest.mark.parametrize("option", [["--no-color"], []])
def test_without_colors_a_terminal_gets_none(cli: Executable, option: list[str]) -> None:
    variables = {} if option else {"NO_COLOR": "1"}

    for arguments in (["pull", "/nowhere"], ["doctor"], ["--help"]):
        _, got = on_terminal(cli, 100, *option, *arguments, **variables)

        assert plain(got).strip()
        assert re.findall(r"\x1b\[(?:[0-9;]*;)?(?:3[0-9]|9[0-7])m", got) == []


def test_a_dumb_terminal_gets_lines(cli: Executable, server: FaultServer) -> None:
    server.put("/model.bin", WEIGHTS)
    server.fail("/model.bin", stalled_from(CHUNK_BYTES))
    patience = {"MODELCACHE_STALL_TIMEOUT_S": "1", "MODELCACHE_RETRY_DEADLINE_S": "1"}

    _, got = on_terminal(cli, 80, "pull", f"{server.endpoint}/model.bin", TERM="dumb", NO_COLOR="1", **patience)

    assert "\x1b" not in got
    assert "fetching" in got


def test_tables_fit_a_terminal_and_lose_nothing(cli: Executable, model: Path) -> None:
    cli("pull", "-q", model)
    cli("pin", model, "--holder", "team-a-inference-deployment-7d4b9c")

    for columns in (80, 200):
        code, got = on_terminal(cli, columns, "ls")
        lines = plain(got).splitlines()

        assert code == 0
        assert [line for line in lines if len(line) > columns and "file://" not in line] == []
        assert f"file://{model}" in got
        assert "pin team-a-inference-deployment-7d4b9c" in got
