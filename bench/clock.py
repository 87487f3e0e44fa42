"""Runs one program and says what it took: seconds, CPU seconds and memory, until it ended and until its files were on disk.

Started as a script with `python -I -S`, the order as JSON on standard input, the answer as JSON on standard output. A process of
its own, because the peak that the kernel reports of a child is never below the memory of the process that it was forked from.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SAMPLE_S = 0.1
SYNC_THREADS = 4


def main() -> None:
    """`{"argv", "environ", "destination", "log", "cores"}` → what it took."""
    order = json.load(sys.stdin)
    if order["cores"]:
        os.sched_setaffinity(0, order["cores"])
    with open(order["log"], "ab") as log:
        started_s = time.monotonic()
        child = subprocess.Popen(order["argv"], env=order["environ"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    with Tree(child.pid) as tree:
        _, status, used = os.wait4(child.pid, 0)
        ended_s = time.monotonic()
    child.returncode = os.waitstatus_to_exitcode(status)
    before = resource.getrusage(resource.RUSAGE_SELF)
    sync_started_s = time.monotonic()
    sync(order["destination"])
    sync_s = time.monotonic() - sync_started_s
    after = resource.getrusage(resource.RUSAGE_SELF)
    answer = {
        "exit_status": child.returncode,
        "wall_to_exit_s": ended_s - started_s,
        "wall_s": ended_s - started_s + sync_s,
        "user_s": used.ru_utime,
        "system_s": used.ru_stime,
        "sync_cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_rss_bytes": max(used.ru_maxrss << 10, tree.peak_bytes),
    }
    json.dump(answer, sys.stdout)


class Tree:
    """The largest sum of resident memory over a process and its descendants, sampled; the kernel's own peak is of one process."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Tree:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            pids = descendants(self._pid)
            if len(pids) > 1:  # of one process the kernel knows the peak exactly
                self.peak_bytes = max(self.peak_bytes, sum(map(resident_bytes, pids)))


def descendants(pid: int) -> list[int]:
    """A process and what it started, as far as they still run."""
    found = [pid]
    for each in found:
        with suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{task}/children") as file:
                    found.extend(map(int, file.read().split()))
    return found


def resident_bytes(pid: int) -> int:
    """proc(5), statm: the second field is resident pages."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * PAGE_BYTES
    except OSError:
        return 0


def sync(directory: str) -> None:
    """fsync every file below a directory, several at a time, then the directories."""
    files: list[str] = []
    directories: list[str] = []
    for place, _, names in os.walk(directory):
        directories.append(place)
        files += [os.path.join(place, name) for name in names]
    threads = [threading.Thread(target=sync_each, args=(files[start::SYNC_THREADS],)) for start in range(SYNC_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sync_each(reversed(directories))


def sync_each(paths: Iterable[str]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


if __name__ == "__main__":
    main()
