"""Where a command's words go: the result to stdout, everything said along the way to stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import TextIO

from modelcache.cli.tables import Table, printable, table_lines
from modelcache.errors import FileFault

BOLD, BOLD_RED, GREEN, YELLOW, DIM, PLAIN = "\x1b[1m", "\x1b[1;31m", "\x1b[32m", "\x1b[33m", "\x1b[2m", "\x1b[0m"


class ReaderGone(Exception):
    """stdout's reader closed it; there is nobody to tell."""


@dataclass(frozen=True, slots=True)
class Style:
    """How the user wants to be spoken to."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    color: bool = True
    draws: bool = True
    """The terminal understands cursor movements (`TERM` is not `dumb`)."""


class Output:
    """stdout and stderr in one of two styles: for people, or `--json`.

    With `--json` stdout gets exactly one document, on success (`document`) and on failure (`failure`); stderr gets JSON lines,
    each with an `event`; the failure, too, where stdout can't be written. For people a result is lines and tables on stdout; notes,
    warnings and errors go to stderr.

    Attributes:
        drawing: something is drawn on stderr in place, and the cursor is hidden.
    """

    def __init__(self, style: Style, *, out: TextIO, err: TextIO) -> None:
        self.style = style
        self._out = out
        self._err = err
        self._lost = False
        self.drawing = False

    @property
    def err_is_terminal(self) -> bool:
        """Whether progress can be drawn."""
        return self.style.draws and self._err.isatty()

    @property
    def out_is_terminal(self) -> bool:
        """Whether the result can be drawn in place."""
        return self.style.draws and self._out.isatty()

    @property
    def out_width(self) -> int | None:
        """Of the terminal that shows the result, in cells; None: it is none."""
        return shutil.get_terminal_size().columns if self._out.isatty() else None

    @property
    def out(self) -> TextIO:
        return self._out

    @property
    def err(self) -> TextIO:
        return self._err

    # -- the result -------------------------------------------------------------------------------------------------

    def document(self, fields: Mapping[str, object]) -> None:
        """The result with `--json`; nothing otherwise. Indented on a terminal, else one line."""
        if self.style.as_json:
            pieces: Iterable[str] = [json.dumps(fields, indent=2)] if self._out.isatty() else _pieces(fields)
            self._flushed(lambda: self._out.writelines(chain(pieces, "\n")))

    def line(self, text: str, *, label: str = "", color: str = "") -> None:
        """One line of the result, for people; `label` stands before it, on a terminal in a color."""
        if self.style.as_json:
            return
        if label:
            shown = f"{color}{label}{PLAIN}" if color and self.style.color and self._out.isatty() else label
            self._write_out(f"{shown}  {printable(text)}\n")
        else:
            self._write_out(printable(text) + "\n")

    def path(self, path: Path) -> None:
        """One line that is a path, byte for byte, for people and for `$(…)`."""
        if not self.style.as_json:
            self._flushed(lambda: self._out.buffer.write(os.fsencode(path) + b"\n"))

    def table(self, table: Table) -> None:
        """A table, for people; nothing is cut off."""
        if self.style.as_json:
            return
        shown = Table(table.columns, tuple(tuple(printable(cell) for cell in row) for row in table.rows))
        header, *lines = table_lines(shown, self.out_width)
        if self._out.isatty() and self.style.color:
            header = f"{BOLD}{header}{PLAIN}"
        self._write_out("".join(line + "\n" for line in (header, *lines)))

    # -- along the way ----------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Something good to know; silent with `--quiet` and `--json`."""
        if not self.style.quiet and not self.style.as_json:
            self._write_err(printable(text))

    def event(self, name: str, fields: Mapping[str, object]) -> None:
        """A JSON line on stderr; silent without `--json` and with `--quiet`."""
        if self.style.as_json and not self.style.quiet:
            self._write_err(json.dumps({"event": name, **fields}))

    def warn(self, message: str, *, hint: str | None) -> None:
        """Something that should be changed, and how if that is known; said even with `--quiet`."""
        if self.style.as_json:
            self._write_err(json.dumps({"event": "warning", "message": message, "hint": hint}))
            return
        self._write_err(f"{self._colored('warning:', YELLOW)} {printable(message)}")
        if hint:
            self._write_err(f"{self._colored('hint:', DIM)} {printable(hint)}")

    def failure(self, fields: Mapping[str, object], *, result: Mapping[str, object], details: str = "") -> None:
        """Why the command failed: `error: …` and `hint: …` on stderr, or the document `{…, "error": {…}}` with `--json`.

        Args:
            fields: `message`, and `hint` where there is one; with `--json` all of them are shown.
            result: what was done before the failure, in the keys of the command's own document.
            details: more lines for people, shown as they are (`--verbose`).
        """
        if self.style.as_json:
            with suppress(FileFault):
                if not self._lost:
                    self.document({**result, "error": dict(fields)})
            if self._lost:
                self._write_err(json.dumps({"event": "error", "error": dict(fields)}))
            return
        if details:
            self._write_err(printable(details.rstrip()))
        self._write_err(f"{self._colored('error:', BOLD_RED)} {printable(str(fields['message']))}")
        if fields.get("hint"):
            self._write_err(f"{self._colored('hint:', DIM)} {printable(str(fields['hint']))}")

    # -- streams ----------------------------------------------------------------------------------------------------

    def _colored(self, text: str, code: str) -> str:
        return f"{code}{text}{PLAIN}" if self.style.color and self.err_is_terminal else text

    def _write_out(self, text: str) -> None:
        self._flushed(lambda: self._out.write(text))

    def _flushed(self, write: Callable[[], object]) -> None:
        try:
            self._out.flush()
            write()
            self._out.flush()
        except OSError as error:
            _discard(self._out)
            if isinstance(error, BrokenPipeError):
                raise ReaderGone from error
            self._lost = True
            raise FileFault(f"stdout can't be written ({error.strerror})", hint="what the command did stays done") from error

    def _write_err(self, line: str) -> None:
        try:
            self._err.write(line + "\n")
            self._err.flush()
        except OSError:
            _discard(self._err)  # the terminal is gone; the work goes on


def streams() -> tuple[TextIO, TextIO]:
    """This process's stdout and stderr, or nowhere for one that it was started without.

    Characters that their encoding lacks are written as escapes instead of failing.
    """
    found = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        found.append(stream if stream is not None else open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  lives as long as the process
    return found[0], found[1]


def _pieces(fields: Mapping[str, object]) -> Iterator[str]:
    """`json.dumps(fields)`, a list's elements one by one: encoded at once, a thousand models take 4 MB beside their 0.5 MB of text."""
    before = "{"
    for key, value in fields.items():
        yield f"{before}{json.dumps(key)}: "
        before = ", "
        if isinstance(value, list):
            for index, element in enumerate(value):
                yield f"{', ' if index else '['}{json.dumps(element)}"
            yield "]" if value else "[]"
        else:
            yield json.dumps(value)
    yield "}" if fields else "{}"


def _discard(stream: TextIO) -> None:
    """Let the stream lead nowhere, so that the flush at exit can't fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)
