"""What the servers that are programs of their own have in common: a start that is waited for, and an end."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from modelcache.testing.servers.ports import LOOPBACK
from modelcache.testing.servers.process import OwnedProcess, started


class LaunchedServer(ABC):
    """A server on a port of this machine, running inside its `with` block.

    Attributes:
        directory: where it may keep what outlives the block, such as its log.
        port: of this start; 0 before the first.
    """

    def __init__(self, directory: Path, *, start_deadline_s: float) -> None:
        self.directory = directory
        self.port = 0
        self._start_deadline_s = start_deadline_s
        self._process: OwnedProcess | None = None

    def __enter__(self) -> Self:
        self._process = started(self._launch, self._ready, deadline_s=self._start_deadline_s)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.stop()

    def pids(self) -> list[int]:
        """Its processes, for measurements."""
        return [] if self._process is None else self._process.pids()

    def log_tail(self) -> str:
        """The end of its log."""
        return "" if self._process is None else self._process.log_tail()

    @abstractmethod
    def _launch(self) -> OwnedProcess:
        """Start it, on a fresh port."""

    @abstractmethod
    def _ready(self) -> bool:
        """Whether it serves, not merely listens."""


class DirectoryServer(LaunchedServer):
    """One that serves a directory to one user.

    Attributes:
        root: what it serves; `directory` holds that, and its log beside.
    """

    user = "reader"

    def __init__(self, directory: Path, *, start_deadline_s: float = 30.0) -> None:
        super().__init__(directory, start_deadline_s=start_deadline_s)
        self.root = directory / "root"
        self.root.mkdir(parents=True)
        self.password = f"p@ss/{secrets.token_hex(8)}"

    @property
    def authority(self) -> str:
        return f"{LOOPBACK}:{self.port}"
