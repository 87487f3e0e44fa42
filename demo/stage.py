"""The frame of each half of the demonstration: its words, its commands, its table, its directory, its end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from demo.commands import Ran, run
from modelcache.units import format_bytes, format_duration

KEPT = Path(__file__).resolve().parents[1] / ".cache"
"""What a later run uses again."""
FOREIGN = ("AWS_", "MODELCACHE_", "S3_", "HF_")
FOREIGN_ENDS = ("_PROXY", "_CA_BUNDLE")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = 130
"""128 + SIGINT, as shells report it."""


class DemoFailed(Exception):
    """Something was not as the demonstration says; the message tells what."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the last table; None where there is nothing to count."""

    what: str
    seconds: float
    fetched_bytes: int | None = None
    stored_bytes: int | None = None


class Stage:
    """One half of the demonstration. `directory` is its own; commands run in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._console = Console(highlight=False, soft_wrap=True)
        self._environ = _own_environ()
        self._rows: list[Row] = []
        self._steps = 0

    # -- words ------------------------------------------------------------------------------------------------------

    def title(self, text: str) -> None:
        if self._console.is_terminal:
            self._console.rule(f"[bold]{escape(text)}[/]", align="left")
        else:
            self._console.print(text)

    def step(self, text: str) -> None:
        """The next step, numbered."""
        self._steps += 1
        self._console.print(f"\n[bold cyan]{self._steps}[/]  [bold]{escape(text)}[/]")

    def say(self, text: str) -> None:
        self._console.print(f"[dim]{escape(text)}[/]")

    def good(self, text: str) -> None:
        self._console.print(f"[green]{escape(text)}[/]")

    def row(self, row: Row) -> None:
        """Add a line to the table."""
        self._rows.append(row)

    def table(self) -> None:
        """What each step took, what came over the network, and what the store held after it."""
        plain = not self._console.is_terminal
        table = Table(box=None if plain else box.ROUNDED, pad_edge=not plain, header_style="bold")
        table.add_column("step", no_wrap=True)
        for title in ("took", "fetched", "stored then"):
            table.add_column(title, justify="right", no_wrap=True)
        for row in self._rows:
            table.add_row(escape(row.what), format_duration(row.seconds), _bytes(row.fetched_bytes), _bytes(row.stored_bytes))
        self._console.print()
        self._console.print(table)

    # -- commands ---------------------------------------------------------------------------------------------------

    def set_environ(self, values: Mapping[str, str]) -> None:
        """Variables that every command gets from here on."""
        self._environ |= values

    def run(self, *command: str, expect: int = 0, **more: str) -> Ran:
        """Run a command as a user would, shown with what it prints; `more`: variables of this command alone.

        Raises:
            DemoFailed: it ended with another code than `expect`.
        """
        line = " ".join([*(f"{name}={shlex.quote(value)}" for name, value in more.items()), shlex.join(command)])
        self._console.print(f"[bold]$ {escape(line)}[/]")
        ran = run(command, environ=self._environ | more, directory=self.directory, shown=True)
        if ran.code != expect:
            raise DemoFailed(f"`{line}` ended with {ran.code} instead of {expect}")
        return ran

    def ask(self, *command: str, **more: str) -> Any:
        """Run a command unseen; the JSON that it prints as its last line.

        Raises:
            DemoFailed: it failed.
        """
        ran = run(command, environ=self._environ | more, directory=self.directory, shown=False)
        if ran.code != 0:
            raise DemoFailed(f"`{shlex.join(command)}` ended with {ran.code}:\n{ran.output}")
        return json.loads(ran.output.strip().splitlines()[-1])


@contextmanager
def stage(title: str) -> Iterator[Stage]:
    """One half of the demonstration, in a directory that is gone afterwards, however it ends.

    Ends the process with 130 on Ctrl-C, SIGTERM or a closed terminal, and with 1 and a sentence when something is not as it says.
    """
    for number in SIGNALS:
        signal.signal(number, _stop)
    problem, code = "", 0
    try:
        KEPT.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT, prefix=f"demo-{os.getpid()}-") as directory:
            shown = Stage(Path(directory))
            shown.title(title)
            try:
                yield shown
            finally:
                _undisturbed()
    except KeyboardInterrupt:
        problem, code = "stopped; nothing is left running", STOPPED
    except DemoFailed as error:
        problem, code = f"the demonstration failed: {error}", 1
    if code:
        sys.stderr.write(f"\n{problem}\n")
        sys.exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    _undisturbed()
    raise KeyboardInterrupt


def _undisturbed() -> None:
    """Nothing breaks the tidying up off, a second Ctrl-C neither."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _own_environ() -> dict[str, str]:
    """This process's variables without settings, credentials and proxies of whoever watches."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(FOREIGN) and not name.upper().endswith(FOREIGN_ENDS)
    }
    nobodys = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "MODELCACHE_CONFIG"), os.devnull)
    return kept | {"AWS_EC2_METADATA_DISABLED": "true"} | nobodys


def _bytes(count: int | None) -> str:
    return "" if count is None else format_bytes(count)
