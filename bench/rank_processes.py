"""Ranks of a node, each a process that has imported what it needs before any begins, and what they took together."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from bench.drivers.keeper import kept
from modelcache.units import GIB

TIMEOUT_S = 600
Answer = Mapping[str, Any]
"""What a rank's driver says."""


def answers_of(
    arguments: Iterable[list[str]], environ: Mapping[str, str], prepare: Callable[[], object], *, kept_bytes: int
) -> list[Answer]:
    """What each rank says.

    Args:
        arguments: of each rank, for Python. It says `ready` when it could begin, and begins when a line comes.
        prepare: called when all are ready, before any begins.
        kept_bytes: of memory that the host is to have at hand while they run.
    """
    environ = {**environ, "OMP_NUM_THREADS": "1"}  # as torchrun has it
    with ExitStack() as ends:
        ranks = []
        for each in arguments:
            argv, pipe = [sys.executable, *each], subprocess.PIPE
            process = ends.enter_context(subprocess.Popen(argv, env=environ, stdin=pipe, stdout=pipe, text=True))
            ends.callback(process.kill)
            ranks.append(process)
        for process in ranks:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise SystemExit(f"error: {process.args!r} ended before it began")
        prepare()
        ends.enter_context(kept(kept_bytes))
        for process in ranks:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=TIMEOUT_S)[0] for process in ranks]
        for process in ranks:
            if process.returncode:
                raise SystemExit(f"error: {process.args!r} failed")
        return [json.loads(each) for each in said]


def sums(answers: Iterable[Answer], size_bytes: int) -> dict[str, Any]:
    """What all of them took, for a model of this size; and what each did."""
    each = list(answers)
    cpu_s = sum(answer["cpu_s"] for answer in each)
    return {
        "size_bytes": size_bytes,
        "cpu_s": cpu_s,
        "cpu_s_per_gib": cpu_s * GIB / size_bytes,
        "read_share": sum(answer["read_bytes"] for answer in each) / size_bytes,
        "peak_share": sum(answer["peak_bytes"] for answer in each) / size_bytes,
        "part_bytes": [answer["part_bytes"] for answer in each],
        "ways": [answer["ways"] for answer in each],
    }
