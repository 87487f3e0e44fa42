"""`modelcache prewarm`: have many models here before anybody waits for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from modelcache.cli import documents, lazy
from modelcache.cli.arguments import URIS, stdin, warn_of_secrets
from modelcache.cli.completion import complete_name
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.failures import RETRY_HINT
from modelcache.cli.interrupts import cancelled_by_signals
from modelcache.cli.many_view import many_view
from modelcache.cli.options import FLAG, OriginOptions
from modelcache.cli.progress_view import look_of_fetch
from modelcache.cli.session import Session
from modelcache.cli.tables import counted
from modelcache.errors import BadConfig, FileFault, InvalidUri
from modelcache.patience import Cancellation
from modelcache.units import format_bytes, format_duration

if TYPE_CHECKING:
    from modelcache.fetch.progress import Progress
    from modelcache.prewarm import PrewarmReport

MAX_URIS = 100_000
PIN_HOLDER = "prewarm"
STDIN = "-"

Uris = Annotated[
    list[str],
    typer.Argument(
        metavar="[URI]...",
        default_factory=list,
        show_default=False,
        help=URIS,
        autocompletion=complete_name,
    ),
]
Lists = Annotated[
    list[str] | None,
    typer.Option("--file", "-f", metavar="FILE", help="URIs, one a line, # before a remark; - for stdin; repeatable."),
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, max=64, help="Models in progress at a time.")]
Pin = Annotated[bool, typer.Option("--pin", metavar=FLAG, help="Keep each until it is unpinned.")]
RefreshWord = Annotated[Literal["always", "auto"], typer.Option("--refresh", help="When to ask for a newer version of what is here.")]


def prewarm(
    session: Session, uris: Uris, origin: OriginOptions, file: Lists = None, jobs: Jobs = 4, pin: Pin = False, refresh: RefreshWord = "auto"
) -> ExitCode:
    """Fetch many models, several at a time, behind whoever waits for one.

    Looks all of them up first: if what is missing doesn't fit, nothing is fetched. One that fails doesn't stop the others; then the
    command exits with 11. The same command goes on where it was broken off.
    """
    given = [(STDIN, True) if text == STDIN else (text, False) for text in uris] + [(place, True) for place in file or ()]
    wanted = [text for one, is_list in given for text in (_listed(one) if is_list else (one,))]
    if not wanted:
        raise BadConfig("name URIs, or a file of them with --file")
    if len(wanted) > MAX_URIS:
        raise BadConfig(f"{len(wanted):,} URIs are more than {MAX_URIS:,}", got=str(len(wanted)))
    for text in (one for one, is_list in given if not is_list):
        with suppress(InvalidUri):  # told as its outcome
            warn_of_secrets(session.output, text, "modelcache prewarm -")
    cancel = Cancellation()
    with ExitStack() as run:
        run.enter_context(cancelled_by_signals(cancel, session.output))
        cache = run.enter_context(session.open_cache(session.settings(origin), fetches=wanted))
        view = run.enter_context(many_view(session.output, len(wanted)))

        def show(number: int, progress: Progress) -> None:
            view.show(number, look_of_fetch(progress))

        pin_for = PIN_HOLDER if pin else None
        report = cache.prewarm(wanted, jobs=jobs, refresh=lazy.refresh_of(refresh), pin_for=pin_for, progress=show, cancel=cancel)
    session.finish(pinned=pin, **documents.of_prewarmed(report))
    _tell(session, report)
    if report.cancelled:
        return ExitCode.CANCELLED
    return ExitCode.PARTLY if report.failed else ExitCode.OK


def _tell(session: Session, report: PrewarmReport) -> None:
    for outcome in report.failed:
        if outcome.error is not None:
            hint = outcome.error.hint or (RETRY_HINT if outcome.error.retryable else None)
            session.output.warn(f"{outcome.uri}: {outcome.error.message}", hint=hint)
    extent = f"fetched {format_bytes(report.fetched_bytes)}, reused {format_bytes(report.reused_bytes)}"
    here = len(report.outcomes) - len(report.failed)
    words = f"{here:,} of {counted(len(report.outcomes), 'model')} here, {len(report.failed):,} failed"
    session.output.note(f"{words}; {extent} in {format_duration(report.elapsed_s)}")
    for outcome in report.outcomes:
        if outcome.snapshot is not None:
            session.output.path(outcome.snapshot.path)


def _listed(place: str) -> Sequence[str]:
    try:
        with _opened(place) as lines:
            return lazy.read_list(lines)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise FileFault(f"the list can't be read ({why})", address=place) from error


@contextmanager
def _opened(place: str) -> Iterator[TextIO]:
    if place == STDIN:
        yield stdin()
        return
    with Path(place).open(encoding="utf-8") as stream:
        yield stream
