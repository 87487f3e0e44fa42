"""`modelcache verify`: read every byte again and compare, and repair what is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from modelcache.cli import documents
from modelcache.cli.arguments import AnyName, size_of
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.interrupts import cancelled_by_signals
from modelcache.cli.progress_view import Reading, progress_view
from modelcache.cli.session import Session
from modelcache.cli.tables import counted
from modelcache.errors import BadConfig
from modelcache.patience import Cancellation
from modelcache.units import format_bytes, format_duration

if TYPE_CHECKING:
    from modelcache.abc.store import Damage, VerifyReport
    from modelcache.upkeep.repair import RepairReport

NEXT = "next: `modelcache verify --repair` fetches what is damaged again, as does a pull of the model; `modelcache rm` forgets the model"


def verify(
    session: Session,
    name: AnyName = None,
    repair: Annotated[bool, typer.Option("--repair", help="Fetch damaged chunks again and put them in place.")] = False,
    budget: Annotated[str | None, typer.Option("--budget", metavar="SIZE", help="Read about this much, longest ago first.")] = None,
    rate: Annotated[str | None, typer.Option("--rate", metavar="SIZE", help="Read at most this much a second, as 200MiB.")] = None,
) -> ExitCode:
    """Read models from the disk and compare every byte with its digest.

    With --budget or --rate in the background: at lowest priority, what was longest not read back first, so that the next time goes on
    where this one ended.

    What is damaged is taken out of service; --repair, or pulling it again, brings it back, and rm forgets it. Exits with 6 if it finds
    damage that it doesn't repair, and as long as a model is out of service.
    """
    in_parts = budget is not None or rate is not None
    if in_parts and name is not None:
        raise BadConfig("--budget and --rate choose by themselves what is read: give no NAME")
    budget_bytes = None if budget is None else size_of("--budget", budget)
    bytes_per_s = None if rate is None else size_of("--rate", rate)
    if bytes_per_s == 0:
        raise BadConfig("--rate: nothing is read at 0 bytes a second", got=rate, hint="leave it out: no bound")
    cancel = Cancellation()
    repaired: RepairReport | None = None
    with cancelled_by_signals(cancel, session.output), progress_view(session.output) as view:
        reading = Reading(name or "everything")

        def show(done: int, total: int) -> None:
            view.show(reading.look(done, total))

        if not repair and not in_parts:
            with session.open_cache(looks=True) as cache:
                report = cache.verify(name, progress=show, cancel=cancel)
        else:
            session.expect_store()
            with session.open_store() as store:
                if in_parts:
                    report = store.scrub(budget_bytes=budget_bytes, bytes_per_s=bytes_per_s, progress=show, cancel=cancel)
                if repair:
                    repaired = store.repair(name, verified=report if in_parts else None, progress=show, cancel=cancel)
                    report = repaired.verified
    if repaired is None:
        session.finish(**documents.of_verified(report, reading.elapsed_s))
    else:
        session.finish(**documents.of_repaired(repaired, reading.elapsed_s))
    for line in [*_found_lines(report, reading.elapsed_s), *_repaired_lines(repaired)]:
        session.output.line(line)
    if repaired is None and (report.damages or report.out_of_service):
        session.output.note(NEXT)
    left = (report.damages or report.out_of_service) if repaired is None else (repaired.unrepaired or repaired.verified.out_of_service)
    return ExitCode.INTEGRITY if left else ExitCode.OK


def _found_lines(report: VerifyReport, elapsed_s: float) -> Iterator[str]:
    for damage in report.damages:
        yield from _damage_lines(damage)
    for gone in report.out_of_service:
        yield f"out of service: {', '.join(gone.uris)}: {gone.digest}"
    extent = f"{counted(report.snapshots, 'snapshot')}, {counted(report.blobs, 'blob')}, {format_bytes(report.bytes_read)}"
    wrong = [f"{len(report.damages):,} damaged"] if report.damages else []
    wrong += [f"{counted(len(report.out_of_service), 'model')} out of service"] if report.out_of_service else []
    yield f"{extent} in {format_duration(elapsed_s)}: {' and '.join(wrong) or 'all as they should be'}"


def _damage_lines(damage: Damage) -> list[str]:
    lines = [f"damaged: {damage.path}: {damage.reason}"]
    if damage.chunks:
        lines.append(f"  chunks of 4 MiB: {', '.join(str(number) for number in damage.chunks)}")
    lines += [f"  taken out of service: {digest}" for digest in damage.withdrawn]
    lines += [f"  still shown to its users: {digest}" for digest in damage.still_held]
    return lines


def _repaired_lines(report: RepairReport | None) -> Iterator[str]:
    if report is None:
        return
    for blob in report.blobs:
        yield f"repaired: {blob.digest}, {format_bytes(blob.size_bytes)}, from {blob.uri}"
    for digest in report.restored:
        yield f"back in service: {digest}"
    for item in report.mended:
        yield f"put right where it is held: {item.digest}: {', '.join(item.files)}"
        yield f"  may still read the damaged bytes until they open it again: {', '.join(item.holders) or 'nobody any more'}"
    for uri in report.resolved:
        yield f"confirmed by its origin: {uri}"
    for left in report.unrepaired:
        yield f"not repaired: {', '.join([str(left.digest), *left.uris])}: {left.why}"
        yield f"  next: {left.advice}"
    if report.blobs:
        yield f"{format_bytes(report.fetched_bytes)} fetched, {format_bytes(report.kept_bytes)} kept"
