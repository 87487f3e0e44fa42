"""The real executable, run by tests: every run is a process of its own with a clean environment and a deadline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXECUTABLE = Path(sys.executable).with_name("modelcache")
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Done:
    """A run that ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as the one JSON document that it has to be."""
        return json.loads(self.out)

    @property
    def events(self) -> list[dict[str, Any]]:
        """stderr as the JSON lines that it has to be."""
        return [json.loads(line) for line in self.err.splitlines()]


@dataclass(frozen=True)
class Executable:
    """`modelcache` with a root of its own."""

    root: Path
    environ: Mapping[str, str] = field(default_factory=dict)

    def variables(self, **more: str) -> dict[str, str]:
        """What a run finds in its environment."""
        return {**os.environ, "MODELCACHE_ROOT": str(self.root), "COLUMNS": "200", **self.environ, **more}

    def __call__(self, *arguments: object, stdin: str = "", **variables: str) -> Done:
        done = subprocess.run(
            [EXECUTABLE, *map(str, arguments)],
            input=stdin,
            env=self.variables(**variables),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def start(self, *arguments: object, **streams: Any) -> Iterator[subprocess.Popen[str]]:
        """A run in progress, ended at the latest with the block."""
        with started([EXECUTABLE, *map(str, arguments)], env=self.variables(), **streams) as process:
            yield process


@contextmanager
def started(command: Sequence[str | Path], **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """Any process in progress, ended at the latest with the block."""
    with subprocess.Popen(command, text=True, **streams) as process:
        try:
            yield process
        finally:
            process.kill()
