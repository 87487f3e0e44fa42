"""Runs one program and ends it when whoever started this script is gone, however that ended.

Started as a script (`python -I -S keeper.py COUNT LEFTOVER... COMMAND...`), in a session of its own, with a pipe as its standard
input. When the other end of the pipe closes (the owner stopped it, crashed or was killed) it kills the program and its children,
reaps them, and removes the leftovers (sockets and directories that the program leaves in shared places). PR_SET_PDEATHSIG alone is
not enough: it fires when the *thread* that forked ends, and says nothing to the program's own children (nginx workers).
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1  # these two: linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36


def keep(leftovers: list[str], command: list[str]) -> None:
    """Run `command` in a process group of its own until it ends or standard input closes."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # should the keeper itself be killed
        _become(command)
    with suppress(PermissionError):  # it has called exec, and so setpgid before
        os.setpgid(child, child)
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([0, ended], [], [])
    if ended in ready:
        result = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        os.write(2, f"\n{command[0]} ended by itself: {_describe(result)}\n".encode())
    os.killpg(child, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    for path in leftovers:
        if Path(path).is_dir():
            shutil.rmtree(path)
        else:
            with suppress(FileNotFoundError):
                os.unlink(path)


def _become(command: list[str]) -> None:
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"can't run {command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _describe(result: os.waitid_result | None) -> str:
    assert result is not None
    return f"{'exit status' if result.si_code == os.CLD_EXITED else 'signal'} {result.si_status}"


if __name__ == "__main__":
    count = int(sys.argv[1])
    keep(sys.argv[2 : 2 + count], sys.argv[2 + count :])
