"""`modelcache dedupe`: equal parts of different models on the same blocks."""

from __future__ import annotations

from dataclasses import asdict

from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.interrupts import cancelled_by_signals
from modelcache.cli.session import Session
from modelcache.patience import Cancellation
from modelcache.units import format_bytes


def dedupe(session: Session) -> ExitCode:
    """Have equal chunks of different files use the same blocks of the disk, where the file system can (XFS, btrfs).

    Equal files are stored once in any case; this is for fine-tunes and the like. At lowest priority; no file changes, and what somebody
    holds keeps its blocks.
    """
    session.expect_store()
    cancel = Cancellation()
    with cancelled_by_signals(cancel, session.output), session.open_store() as cache:
        report = cache.dedupe(cancel=cancel)
    session.finish(**asdict(report))
    if not report.possible:
        session.output.line("this file system can't share blocks between files; whole files that are equal are stored once all the same")
        return ExitCode.OK
    session.output.line(
        f"{report.looked_chunks:,} chunks looked at: {format_bytes(report.shared_bytes)} share blocks since now,"
        f" {format_bytes(report.already_bytes)} did before"
    )
    if report.held_bytes:
        session.output.line(f"{format_bytes(report.held_bytes)} more are equal, and in use on both sides: left for another time")
    if report.differing_bytes:
        session.output.line(f"{format_bytes(report.differing_bytes)} should be equal and are not: `modelcache verify` finds the damage")
    return ExitCode.INTEGRITY if report.differing_bytes else ExitCode.OK
