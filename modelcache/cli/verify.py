"""`modelcache verify`: read every byte again and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelcache.cli import documents
from modelcache.cli.arguments import AnyName
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.interrupts import cancelled_by_signals
from modelcache.cli.progress_view import Reading, progress_view
from modelcache.cli.session import Session
from modelcache.cli.tables import counted
from modelcache.patience import Cancellation
from modelcache.units import format_bytes, format_duration

if TYPE_CHECKING:
    from modelcache.abc.store import Damage


def verify(session: Session, name: AnyName = None) -> ExitCode:
    """Read models from the disk and compare every byte with its digest.

    What is damaged is taken out of service; pulling it again fetches it anew. Exits with 6 if anything is.
    """
    session.expect_store()
    cancel = Cancellation()
    with cancelled_by_signals(cancel, session.output), session.open_cache() as cache, progress_view(session.output) as view:
        reading = Reading(name or "everything")
        report = cache.verify(name, progress=lambda done, total: view.show(reading.look(done, total)), cancel=cancel)
    session.finish(**documents.of_verified(report, reading.elapsed_s))
    for damage in report.damages:
        for line in _damage_lines(damage):
            session.output.line(line)
    extent = f"{counted(report.snapshots, 'snapshot')}, {counted(report.blobs, 'blob')}, {format_bytes(report.bytes_read)}"
    found = f"{len(report.damages):,} damaged" if report.damages else "all as they should be"
    session.output.line(f"{extent} in {format_duration(reading.elapsed_s)}: {found}")
    return ExitCode.INTEGRITY if report.damages else ExitCode.OK


def _damage_lines(damage: Damage) -> list[str]:
    lines = [f"damaged: {damage.path}: {damage.reason}"]
    if damage.chunks:
        lines.append(f"  chunks of 4 MiB: {', '.join(str(number) for number in damage.chunks)}")
    lines += [f"  taken out of service: {digest}" for digest in damage.withdrawn]
    lines += [f"  still shown to its users: {digest}" for digest in damage.still_held]
    return lines
