"""What tests of the command line share: the executable with a fresh root, two models that share a file, a server that misbehaves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelcache.cli.main import main
from modelcache.testing.fault_server import Call, Fault, FaultServer
from tests.cli.executable import Done, Executable

WEIGHTS = random.Random(7).randbytes(9 * 1024 * 1024)
"""Three chunks, the last one short."""


def stalled_from(at: int) -> Fault:
    """Bytes before `at` of the file are served; in place of later ones comes silence."""

    def fault(call: Call) -> None:
        begin, _, end = call.received.headers["range"].removeprefix("bytes=").partition("-")
        if int(end) < at:
            call.reply(call.proper)
            return
        call.send(call.proper.head() + call.proper.body[: max(0, at - int(begin))])
        call.ended.wait()
        call.hang_up()

    return fault


@pytest.fixture
def cli(tmp_path: Path) -> Executable:
    return Executable(tmp_path / "root")


@pytest.fixture
def inside(cli: Executable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The same command line inside this process, for what needs no process of its own: thirty times cheaper."""
    monkeypatch.setenv("MODELCACHE_ROOT", str(cli.root))

    def run(*arguments: object) -> Done:
        code = main([*map(str, arguments)])
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with a file of weights and a small one."""
    return _write(tmp_path / "model", b'{"model": 1}')


@pytest.fixture
def sibling(tmp_path: Path) -> Path:
    """A directory with the same weights and another small file."""
    return _write(tmp_path / "sibling", b'{"model": 2}')


def _write(directory: Path, config: bytes) -> Path:
    directory.mkdir()
    (directory / "config.json").write_bytes(config)
    (directory / "model.safetensors").write_bytes(WEIGHTS)
    return directory


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running
