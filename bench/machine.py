"""Where and of what a measurement was taken: recorded in every line of results."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

GIT_TIMEOUT_S = 30
NO_WATERMARKS = {"MODELCACHE_HIGH_WATERMARK": "1", "MODELCACHE_LOW_WATERMARK": "1"}
"""For a store that is measured: how full the machine's disk is otherwise is not the question."""


def facts(directory: Path) -> dict[str, Any]:
    """Processor, cores, memory, kernel, the file system of `directory`, Python, and the commit that is checked out."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "file_system": _file_system(directory.resolve()),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def load() -> float:
    """Runnable processes, averaged over the last minute: much above 0 before a bench starts, somebody else is measured too."""
    return os.getloadavg()[0]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _file_system(directory: Path) -> str:
    """Type of the file system that holds a directory: of the longest mount point above it."""
    places = {Path(each.mountpoint): each.fstype for each in psutil.disk_partitions(all=True)}
    above = [place for place in (directory, *directory.parents) if place in places]
    return places[above[0]] if above else "unknown"


def _commit() -> str:
    """`abc1234`, with a `+` where the code that is measured has changes on top of it; empty outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False
        ).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", "../modelcache", ".") else "")
