"""`modelcache load`: what loading a model's tensors takes on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelcache.cli import lazy
from modelcache.cli.completion import complete_name
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.interrupts import cancelled_by_signals
from modelcache.cli.options import OriginOptions
from modelcache.cli.progress_view import Reading, progress_view
from modelcache.cli.session import Session
from modelcache.cli.tables import Column, Table, counted
from modelcache.patience import Cancellation
from modelcache.units import format_bytes, format_duration, format_rate

if TYPE_CHECKING:
    from modelcache.loader.report import LoadReport

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A URI (loaded as it arrives if it isn't here), a file or a directory.", autocompletion=complete_name
    ),
]
Device = Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="As torch names it: cuda:0. Default: host memory.")]
Time = Annotated[bool, typer.Option("--time", help="Show the seconds of each phase, too.")]
PHASES = {
    "fetching": "fetched_s",
    "opening": "opened_s",
    "waiting for bytes": "waited_s",
    "placing": "placed_s",
    "consuming": "consumed_s",
    "verifying": "verified_s",
}


def load(session: Session, source: Source, origin: OriginOptions, device: Device = None, time: Time = False) -> ExitCode:
    """Load every tensor once, and say how the bytes came and how fast.

    Needs torch. "mapped" bytes were in memory already and were not copied; "direct" ones came from the disk, around the page cache.
    """
    cancel = Cancellation()
    with cancelled_by_signals(cancel, session.output), progress_view(session.output) as view:
        reading = Reading(lazy.redact_url(source) if "://" in source else source, phase="loading")

        def show(done_bytes: int, total_bytes: int) -> None:
            view.show(reading.look(done_bytes, total_bytes))

        show(0, 0)
        if "://" in source:
            with session.open_store(session.config(origin)) as cache:
                report = lazy.load(source, cache, device, cancel, show)
        else:
            report = lazy.load(source, None, device, cancel, show)
    session.finish(**_document(report))
    output = session.output
    output.line(f"tensors   {counted(report.tensors, 'tensor')}, {format_bytes(report.tensor_bytes)}")
    output.line(f"took      {format_duration(report.seconds)}, {format_rate(report.rate_bytes_per_s)}")
    for way, size_bytes in sorted(report.read_bytes.items()):
        output.line(f"{way:<9} {format_bytes(size_bytes)}")
    if time:
        rows = tuple((phase, format_duration(getattr(report, name))) for phase, name in PHASES.items())
        output.table(Table((Column("phase"), Column("took", right=True)), rows))
    return ExitCode.OK


def _document(report: LoadReport) -> dict[str, object]:
    return {
        "tensors": report.tensors,
        "tensor_bytes": report.tensor_bytes,
        "seconds": report.seconds,
        **{name: getattr(report, name) for name in PHASES.values()},
        "rate_bytes_per_s": report.rate_bytes_per_s,
        "read_bytes": {str(way): size_bytes for way, size_bytes in sorted(report.read_bytes.items())},
    }
