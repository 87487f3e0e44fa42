"""`modelcache pull`: have models here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from modelcache.cli import documents, lazy
from modelcache.cli.arguments import URIS, stdin, warn_of_secrets
from modelcache.cli.completion import complete_name
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.interrupts import cancelled_by_signals
from modelcache.cli.options import OriginOptions, SelectionOptions
from modelcache.cli.progress_view import look_of_fetch, progress_view
from modelcache.cli.session import Session
from modelcache.cli.tables import counted
from modelcache.errors import BadConfig, Cancelled, InvalidUri, ModelCacheError, NotCached
from modelcache.patience import Cancellation
from modelcache.units import format_bytes, format_duration, format_rate

if TYPE_CHECKING:
    from modelcache.abc.snapshot import Snapshot
    from modelcache.cache import Refresh
    from modelcache.cli.caches import Cache
    from modelcache.fetch.progress import Progress

MAX_STDIN_URIS = 100_000

Uris = Annotated[
    list[str],
    typer.Argument(metavar="URI...", help=URIS, autocompletion=complete_name),
]


def pull(session: Session, uris: Uris, origin: OriginOptions, selection: SelectionOptions) -> ExitCode:
    """Fetch models, verify them and print where they are.

    Several URIs are pulled one after the other; the first failure ends the command. Credentials come from the environment, a
    profile, or a URI on stdin. One in an argument works and is warned of: every user of the machine can read arguments.
    """
    refresh = _refresh(selection)
    wanted = [_wanted(session, text, selection) for text in _texts(session, uris)]
    if not wanted:
        raise BadConfig("stdin names no URI", hint="write one a line")
    settings = session.settings(origin, max_bytes=selection.max_bytes)
    done: list[dict[str, object]] = []
    session.result["snapshots"] = done
    cancel = Cancellation()
    with cancelled_by_signals(cancel, session.output), session.open_cache(settings, fetches=wanted) as cache:
        for uri in wanted:
            snapshot, last = _pull(session, cache, uri, refresh, cancel)
            done.append(documents.pulled(snapshot, last))
            if last.stale:
                _warn_of_age(session, last)
            session.output.note(_summary(last))
            session.output.path(snapshot.path)
    session.finish()
    return ExitCode.OK


def _pull(session: Session, cache: Cache, uri: str, refresh: Refresh, cancel: Cancellation) -> tuple[Snapshot, Progress]:
    looks: list[Progress] = []

    def show(progress: Progress) -> None:
        looks[:] = [progress]
        if progress.phase != "done":  # the summary tells
            view.show(look_of_fetch(progress))

    with progress_view(session.output) as view:
        try:
            snapshot = cache.ensure(uri, refresh=refresh, progress=show, cancel=cancel)
        except Cancelled as error:
            raise _cancelled(error, looks) from error
        except NotCached as error:
            raise _from_elsewhere(cache, uri, error) from error
    return snapshot, looks[0]


def _cancelled(error: Cancelled, looks: Sequence[Progress]) -> Cancelled:
    """The same with what was reached."""
    if not looks or not looks[0].bytes_done:
        return Cancelled("cancelled", address=error.address, hint="the same command starts over")
    last = looks[0]
    return Cancelled(
        f"cancelled when {format_bytes(last.bytes_done)} of {format_bytes(last.bytes_total)} had come",
        address=last.uri,
        hint="whole chunks of that are kept: the same command goes on from there",
    )


def _from_elsewhere(cache: Cache, uri: str, error: NotCached) -> NotCached:
    """The same; where the URI is here from another origin than the settings lead to, the hint says from which."""
    canonical = str(lazy.read_uri(uri)[0])
    try:
        origins = sorted({ref.key.origin for ref in cache.refs(uri) if ref.key.uri == canonical})
    except ModelCacheError:
        return error
    shown = ", ".join(f"`{origin}`" for origin in origins)
    hint = f"it is here from {shown}: have the settings lead there (endpoint, CA), or take what `modelcache path URI` prints"
    return NotCached(error.message, address=error.address, hint=hint) if origins else error


def _summary(last: Progress) -> str:
    extent = f"{format_bytes(last.bytes_total)}, {counted(last.files_total, 'file')}"
    if last.hit:
        return f"{last.uri}: hit: nothing fetched ({extent}, {format_duration(last.elapsed_s)})"
    words = [f"fetched {format_bytes(last.bytes_fetched)}", f"reused {format_bytes(last.bytes_reused)}", counted(last.files_total, "file")]
    rate = f" ({format_rate(documents.rate_of(last))})" if last.bytes_fetched else ""
    return f"{last.uri}: {', '.join(words)} in {format_duration(last.elapsed_s)}{rate}"


def _refresh(selection: SelectionOptions) -> Refresh:
    if selection.offline and selection.refresh == "auto":
        raise BadConfig("--offline and --refresh auto contradict each other")
    return lazy.refresh_of("never" if selection.offline else selection.refresh)


def _texts(session: Session, uris: Sequence[str]) -> Iterable[str]:
    """The URIs as given, `-` replaced by the lines of stdin."""
    for text in uris:
        if text != "-":
            warn_of_secrets(session.output, text, "modelcache pull -")
            yield text
            continue
        lines = list(islice(stdin(), MAX_STDIN_URIS + 1))
        if len(lines) > MAX_STDIN_URIS:
            raise InvalidUri(f"more than {MAX_STDIN_URIS:,} URIs on stdin")
        yield from lazy.read_list(lines)


def _warn_of_age(session: Session, last: Progress) -> None:
    session.output.warn(
        f"the origin of `{last.uri}` could not be asked; this is the last version that is known",
        hint="`modelcache pull` without --refresh auto says why",
    )


def _wanted(session: Session, text: str, selection: SelectionOptions) -> str:
    """The URI with the patterns of the options among its own."""
    include, exclude = tuple(selection.include or ()), tuple(selection.exclude or ())
    uri, secrets = lazy.read_uri(text)
    if not include and not exclude:
        return text
    if not secrets:
        return str(replace(uri, include=(*uri.include, *include), exclude=(*uri.exclude, *exclude)))
    if uri.scheme not in ("http", "https"):
        said = "--include and --exclude don't go with a credential in this URI"
        raise InvalidUri(said, address=str(uri), hint="write the patterns into the URI, after a `#`")
    patterns = [f"include={quote(one, safe='')}" for one in include] + [f"exclude={quote(one, safe='')}" for one in exclude]
    return f"{text}{'&' if '#' in text else '#'}{'&'.join(patterns)}"
