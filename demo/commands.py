"""Runs a command before the eyes of whoever watches, and keeps what it printed."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended: its code, how long it took, and all that it printed, to stdout and stderr."""

    code: int
    seconds: float
    output: str = field(repr=False)


def run(command: Sequence[str], *, environ: Mapping[str, str], directory: Path, shown: bool) -> Ran:
    """Run a command to its end.

    A program is looked for beside this interpreter first. `shown`: its words appear while it runs; on a terminal it gets a
    terminal of its own, so that it draws what it draws for everybody. Whatever breaks this off ends the command too, and waits for it.
    """
    beside = Path(sys.executable).parent / command[0]
    full = [str(beside) if beside.exists() else command[0], *command[1:]]
    reader, writer = _terminal() if shown and sys.stdout.isatty() else os.pipe()
    started_s = time.monotonic()
    try:
        process = subprocess.Popen(full, env=dict(environ), cwd=directory, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer)
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    try:
        output = _copied(reader, shown=shown)
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        os.close(reader)
    return Ran(code, time.monotonic() - started_s, output)


def _terminal() -> tuple[int, int]:
    """A pseudo terminal of the size of this one: the end to read from, and the command's."""
    reader, writer = pty.openpty()
    size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
    fcntl.ioctl(writer, termios.TIOCSWINSZ, size)
    return reader, writer


def _copied(reader: int, *, shown: bool) -> str:
    """All that comes until nobody writes any more, passed on to stdout if `shown`."""
    pieces = []
    while piece := _piece(reader):
        pieces.append(piece)
        if shown:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    return b"".join(pieces).decode(errors="replace").replace("\r\n", "\n")


def _piece(reader: int) -> bytes:
    try:
        return os.read(reader, READ_BYTES)
    except OSError as error:
        if error.errno == errno.EIO:  # how a pseudo terminal says that its last writer is gone (pty(7))
            return b""
        raise
