"""`modelcache import`: bring in what `modelcache export` wrote."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Annotated

import typer

from modelcache.cli import documents
from modelcache.cli.arguments import stdin
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.interrupts import cancelled_by_signals
from modelcache.cli.options import FLAG
from modelcache.cli.progress_view import Reading, progress_view
from modelcache.cli.session import Session
from modelcache.cli.tables import counted
from modelcache.patience import Cancellation
from modelcache.units import format_bytes, format_duration

if TYPE_CHECKING:
    from modelcache.cache import ModelCache
    from modelcache.carry.importing import ImportReport

STDIN = "-"

File = Annotated[str, typer.Argument(metavar="FILE", help="What export wrote; - for stdin.")]
Pin = Annotated[bool, typer.Option("--pin", metavar=FLAG, help="Keep the models until they are unpinned.")]


def import_(session: Session, file: File, pin: Pin = False) -> ExitCode:
    """Bring in the models of an export, after every byte of it was verified.

    All of them appear, or none. Bytes that are here already are compared and not written. What a URI leads to is the file's word:
    import only files from somebody whose models you would run.
    """
    cancel = Cancellation()
    with cancelled_by_signals(cancel, session.output, keeps=False), session.open_store() as cache:
        report = _import(session, cache, file, cancel)
        if pin:
            for imported in report.snapshots:
                cache.pin(str(imported.snapshot.digest))
    session.finish(file=file, pinned=pin, **documents.of_imported(report))
    words = f"wrote {format_bytes(report.written_bytes)}, reused {format_bytes(report.reused_bytes)}"
    session.output.note(f"{file}: {counted(len(report.snapshots), 'model')}, {words} in {format_duration(report.elapsed_s)}")
    for imported in report.snapshots:
        for uri in imported.superseded:
            session.output.warn(
                f"`{uri}` leads to a version here that was confirmed later than the file's",
                hint=f"the file's is here as {imported.snapshot.digest}",
            )
        session.output.path(imported.snapshot.path)
    return ExitCode.OK


import_.__name__ = "import"  # the command's; a word of Python's grammar can't be a function's


def _import(session: Session, cache: ModelCache, file: str, cancel: Cancellation) -> ImportReport:
    with progress_view(session.output) as view:
        reading = Reading(file, phase="importing")

        def show(done: int, total: int) -> None:
            view.show(reading.look(done, total))

        if file != STDIN:
            return cache.import_(file, progress=show, cancel=cancel)
        with io.FileIO(stdin().fileno(), "rb", closefd=False) as stream:
            return cache.import_(stream, progress=show, cancel=cancel)
