"""The command line: from arguments to an exit code."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

import typer

from modelcache.cli.app import Start, build
from modelcache.cli.completion import COMPLETE_VARIABLE, complete_in_bash
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.failures import report, report_usage
from modelcache.cli.interrupts import interrupted_by_signals
from modelcache.cli.options import CommonOptions
from modelcache.cli.session import Session
from modelcache.errors import FileFault

NAME = "modelcache"
GARBAGE_OBJECTS = 10_000
"""Python looks for cycles after 700 new objects; that took an eighth of the CPU time of `--help`, whose imports leave none."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; by default the process's.

    Returns: the exit code.
    """
    if arguments is None:  # the process is ours
        gc.freeze()
        gc.set_threshold(GARBAGE_OBJECTS)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--no-color" in given:
        os.environ["NO_COLOR"] = "1"  # what draws the help knows this alone
    try:
        with interrupted_by_signals():
            if os.environ.get(COMPLETE_VARIABLE) == "complete_bash" and "COMP_WORDS" in os.environ:
                complete_in_bash(os.environ, lambda: _run(given))
            return _run(given)
    except KeyboardInterrupt:  # before a command began, or while its end was told
        return ExitCode.CANCELLED


def _run(given: list[str]) -> int:
    command = typer.main.get_command(build(None if COMPLETE_VARIABLE in os.environ else given))
    try:
        code = command.main(args=given, prog_name=NAME, complete_var=COMPLETE_VARIABLE, standalone_mode=False, obj=Start(os.environ))
        return int(code or ExitCode.OK)
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # rich, while it draws the help
            return ExitCode.READER_GONE
        raise
    except (Exception, KeyboardInterrupt) as error:
        if COMPLETE_VARIABLE in os.environ:
            return ExitCode.UNEXPECTED  # the shell asks in the middle of a line; the command itself will tell
        return _outside_of_commands(error, given)


def _outside_of_commands(error: BaseException, given: Sequence[str]) -> int:
    """What typer raises about the arguments (its class differs between versions of typer, its methods don't), and defects."""
    session = Session.of(CommonOptions(as_json="--json" in given, verbose="-v" in given or "--verbose" in given), os.environ)
    say = getattr(error, "format_message", None)
    if say is None and isinstance(error, OSError):  # what typer writes by itself: the help, a shell's completion
        where = "stdout" if error.filename is None else f"`{error.filename}`"
        error = FileFault(f"{where} can't be written ({error.strerror})")
    if say is None:
        return report(session, error)
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else NAME
    return report_usage(session.output, say(), hint=f"`{path} --help` lists what it takes", environ=os.environ)
