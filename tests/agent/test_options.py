"""The agent's options: what makes no sense is refused before anything is opened."""

from __future__ import annotations

import subprocess
import sys

import pytest

from daemonset.__main__ import main
from modelcache.cli.main import main as command_line


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--http", "9090", "no ADDRESS:PORT"),
        ("--http", ":9090", "no ADDRESS:PORT"),
        ("--http", "127.0.0.1:99999", "no ADDRESS:PORT"),
        ("--grace", "-1", "at least 0"),
        ("--grace", "nan", "at least 0"),
        ("--grace", "inf", "at most a day"),
        ("--volume-grace", "1e400", "at most a day"),
        ("--scrub-every", "nan", "at least 0"),
        ("--watch-silence", "nan", "at least 0"),
        ("--volume-grace", "soon", "no number of seconds"),
        ("--scrub-every", "0", "over 0"),
        ("--scrub-rate", "fast", "not a size"),
        ("--scrub-rate", "0", "over 0"),
        ("--root", "", "names nothing"),
        ("--socket", "", "names nothing"),
        ("--api-server", "ftp://cluster", "http"),
    ],
)
def test_what_makes_no_sense_is_refused(option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([f"{option}={value}"])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["nan", "-nan", "inf", "-inf", "-1", "0"])
def test_no_interval_is_out_of_its_range(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["top", f"--interval={seconds}", "--agent", "/nonexistent"]) == 2
    assert "'--interval'" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["grpc_reflection", "prometheus_client"])
def test_an_agent_without_its_extra_says_what_installs_it(package: str) -> None:
    code = f"import runpy, sys; sys.modules['{package}'] = None; runpy.run_module('daemonset', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        [f"error: the agent needs {package}, which is not installed", "hint: pip install 'modelcache[agent]'"],
    )
