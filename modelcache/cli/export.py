"""`modelcache export`: models into one file, for a machine without network, or for a backup."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Annotated

import typer

from modelcache.cli import documents
from modelcache.cli.arguments import A_NAME
from modelcache.cli.completion import complete_name
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.interrupts import cancelled_by_signals
from modelcache.cli.options import FLAG
from modelcache.cli.output import ReaderGone
from modelcache.cli.progress_view import Reading, progress_view
from modelcache.cli.session import Session
from modelcache.cli.tables import counted
from modelcache.errors import BadConfig, FileFault
from modelcache.patience import Cancellation
from modelcache.units import format_bytes, format_duration

if TYPE_CHECKING:
    from modelcache.cache import ModelCache
    from modelcache.carry.exporting import ExportReport

STDOUT = "-"
_STDOUT_TOO = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")

Names = Annotated[
    list[str],
    typer.Argument(
        metavar="[NAME]...",
        default_factory=list,
        show_default=False,
        help=f"{A_NAME}; several, too.",
        autocompletion=complete_name,
    ),
]
File = Annotated[str, typer.Argument(metavar="FILE", help="What is written, whole or not at all; - for stdout.")]
Everything = Annotated[bool, typer.Option("--all", metavar=FLAG, help="Everything that is here.")]


def export(session: Session, names: Names, file: File, everything: Everything = False) -> ExitCode:
    """Write models that are here into one file, every byte compared on the way.

    The file is a tar of verified bytes and of what is known about them; import brings it into another store. Asks no origin. The
    models can be used meanwhile. A file of that name is replaced when the new one is whole.
    """
    if names and everything:
        raise BadConfig("--all exports everything that is here: give no NAME")
    if not names and not everything:
        hint = "`modelcache export NAME… FILE`: the last argument is the file that is written"
        raise BadConfig("name the models to export, or all of them with --all", hint=hint)
    file = STDOUT if file in _STDOUT_TOO else file
    if file == STDOUT and session.options.as_json:
        raise BadConfig("--json and the export can't both go to stdout")
    session.expect_store()
    cancel = Cancellation()
    with cancelled_by_signals(cancel, session.output, keeps=False), session.open_store() as cache:
        report = _export(session, cache, None if everything else names, file, cancel)
    session.finish(file=file, **documents.of_exported(report))
    words = f"exported {counted(len(report.snapshots), 'model')}, {counted(report.files, 'file')}, {format_bytes(report.size_bytes)}"
    (session.output.note if file == STDOUT else session.output.line)(f"{words} in {format_duration(report.elapsed_s)}: {file}")
    return ExitCode.OK


def _export(session: Session, cache: ModelCache, names: list[str] | None, file: str, cancel: Cancellation) -> ExportReport:
    with progress_view(session.output) as view:
        reading = Reading(file, phase="exporting")

        def show(done: int, total: int) -> None:
            view.show(reading.look(done, total))

        if file != STDOUT:
            return cache.export(names, file, progress=show, cancel=cancel)
        if os.isatty(1):
            raise BadConfig("stdout is a terminal", hint="name a file, or a pipe that reads the export")
        try:
            with io.FileIO(1, "wb", closefd=False) as out:
                return cache.export(names, out, progress=show, cancel=cancel)
        except BrokenPipeError as error:
            raise ReaderGone from error
        except OSError as error:  # what goes wrong with the store has been made one of ours
            raise FileFault(f"stdout can't be written ({error.strerror})", hint="name a file, or another pipe") from error
