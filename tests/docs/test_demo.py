"""The demonstration: its first half, whole and broken off; its second half, whose model answers, by `make soak`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from tests.docs.documents import ROOT

TIMEOUT_S = 100
MODEL_TIMEOUT_S = 1100
"""The first run converts the weights."""
ENDING_S = 30.0
SIZE_MIB = "24"


@contextmanager
def demonstration(half: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """One half, the first with a small model, in a process group of its own, as a shell starts it."""
    command = [sys.executable, "-m", half, *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def left_of(pid: int) -> list[str]:
    """Directories of that run, and processes that were started in them.

    A server that was just being started when the run was stopped has an owner of its own, which ends it as soon as it sees that.
    """
    mark = f"demo-{pid}-"
    found = [process for process in psutil.process_iter(["cmdline"]) if mark in " ".join(process.info["cmdline"] or ())]
    _, alive = psutil.wait_procs(found, timeout=ENDING_S)
    return [str(path) for path in (ROOT / ".cache").glob(f"{mark}*")] + [str(process) for process in alive]


def test_it_shows_what_it_says_and_leaves_nothing() -> None:
    with demonstration("demo.store", SIZE_MIB) as process:
        output, _ = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 0, output
    assert output.count("hit: nothing fetched") == 1
    assert f"fetched {SIZE_MIB}.0 MiB, reused 0 B" in output
    assert f", reused {SIZE_MIB}.0 MiB, " in output  # under the other name
    assert "all as they should be" in output
    assert "403" in output  # what the server says to whoever has no key
    assert [line[:8].strip() for line in output.splitlines()[-7:-1]] == ["start an", "put the", "pull", "verify", "pull aga", "pull und"]
    assert left_of(process.pid) == []


@pytest.mark.soak
@pytest.mark.timeout(MODEL_TIMEOUT_S + 100)
def test_the_model_of_the_second_half_answers_from_the_store_alone_and_nothing_is_left() -> None:
    with demonstration("demo.model") as process:
        output, _ = process.communicate(timeout=MODEL_TIMEOUT_S)

    assert process.returncode == 0, output
    lines = [line.strip() for line in output.splitlines()]
    assert lines[lines.index("What is the capital of France?") + 1] == "The capital of France is Paris."
    assert output.count(", reused 0 B, ") == output.count("hit: nothing fetched") == 1
    assert [line[:8].strip() for line in output.splitlines()[-8:-1]][-5:] == ["pull", "import t", "load the", "answer", "pull aga"]
    assert left_of(process.pid) == []


def to_its_group(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)


def to_it_alone(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(("stop", "before"), [(to_it_alone, "An S3 server"), (to_its_group, "$ modelcache pull")])
def test_broken_off_anywhere_it_ends_and_leaves_nothing(stop: Callable[[subprocess.Popen[str]], None], before: str) -> None:
    with demonstration("demo.store", SIZE_MIB) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if before in line:
                stop(process)
                break
        rest, _ = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 130, rest
    assert "nothing is left running" in rest
    assert left_of(process.pid) == []
