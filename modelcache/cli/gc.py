"""`modelcache gc`: remove what nobody needs."""

from __future__ import annotations

from typing import Annotated

import typer

from modelcache.cli import documents
from modelcache.cli.arguments import DryRun
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.session import Session
from modelcache.cli.tables import counted
from modelcache.units import format_bytes, parse_bytes


def gc(
    session: Session,
    dry_run: DryRun = False,
    need: Annotated[str, typer.Option("--need", metavar="SIZE", help="Make room for this much, as 20GiB.")] = "0",
) -> ExitCode:
    """Remove interrupted fetches that nobody went on with, unnamed blobs and trash; over the watermark also unused models.

    Models go least recently used first, and never while someone holds them.
    """
    session.expect_store()
    with session.open_store() as cache:
        report = cache.collect(need_bytes=parse_bytes(need), dry_run=dry_run)
    session.finish(**documents.of_collected(report))
    word = "would free" if report.dry_run else "freed"
    for evicted in report.evicted:
        session.output.line(f"{', '.join(evicted.uris) or evicted.digest}: {word} {format_bytes(evicted.freed_bytes)}")
    counts = f"{counted(len(report.evicted), 'model')}, {counted(report.ingests_removed, 'interrupted ingest')}"
    session.output.line(f"{word} {format_bytes(report.freed_bytes)}: {counts}, {counted(report.blobs_removed, 'unnamed blob')}")
    return ExitCode.OK
