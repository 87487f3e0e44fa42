"""`modelcache gc`: remove what nobody needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelcache.cli import documents
from modelcache.cli.arguments import DryRun, size_of
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.session import Session
from modelcache.cli.tables import counted
from modelcache.errors import NoSpace
from modelcache.units import format_bytes

if TYPE_CHECKING:
    from modelcache.abc.store import CollectReport, Usage


def gc(
    session: Session,
    dry_run: DryRun = False,
    need: Annotated[str, typer.Option("--need", metavar="SIZE", help="Make room for this much, as 20GiB.")] = "0",
) -> ExitCode:
    """Remove interrupted fetches that nobody went on with, unnamed blobs and trash; over the watermark also unused models.

    Models go least recently used first, and never while someone holds them. Where all of them would not make the room that --need asks
    for, none goes, and the command exits with 7.
    """
    need_bytes = size_of("--need", need)
    session.expect_store()
    with session.open_store() as cache:
        report = cache.collect(need_bytes=need_bytes, dry_run=dry_run)
        lack = _lack(need_bytes, report, cache.usage()) if need_bytes else None
    session.result |= documents.of_collected(report)
    word = "would free" if report.dry_run else "freed"
    for evicted in report.evicted:
        session.output.line(f"{', '.join(evicted.uris) or evicted.digest}: {word} {format_bytes(evicted.freed_bytes)}")
    counts = f"{counted(len(report.evicted), 'model')}, {counted(report.ingests_removed, 'interrupted ingest')}"
    session.output.line(f"{word} {format_bytes(report.freed_bytes)}: {counts}, {counted(report.blobs_removed, 'unnamed blob')}")
    if lack is not None:
        raise lack
    session.finish()
    return ExitCode.OK


def _lack(need_bytes: int, report: CollectReport, usage: Usage) -> NoSpace | None:
    """What keeps the room that was asked for from being there now, or, after a dry run, from being made."""
    available_bytes = usage.available_bytes + (report.freed_bytes if report.dry_run else 0)
    if need_bytes <= available_bytes:
        return None
    evictable, held = usage.evictable_bytes, usage.leased_bytes
    return NoSpace(
        f"{format_bytes(need_bytes)} are needed, {format_bytes(available_bytes)} are available, {format_bytes(evictable)} could be freed"
        f" and {format_bytes(held)} are held",
        needed_bytes=need_bytes,
        available_bytes=available_bytes,
        evictable_bytes=evictable,
        held_bytes=held,
    )
