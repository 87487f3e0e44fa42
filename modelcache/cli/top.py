"""`modelcache top`: the node's agent at work."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from modelcache.cli import documents, lazy
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.options import FLAG
from modelcache.cli.progress_view import look_of_fetch
from modelcache.cli.session import Session
from modelcache.cli.tables import Column, Table, counted, format_age, printable, table_lines
from modelcache.errors import AgentUnreachable
from modelcache.units import format_bytes, format_duration, format_rate

if TYPE_CHECKING:
    from modelcache.abc.store import SnapshotInfo, Usage
    from modelcache.agent.client import AgentStatus
    from modelcache.agent.remote import RemoteCache
    from modelcache.fetch.progress import Progress

KEPT_AGE_S = 5.0
"""What is kept and the room that it takes are asked for at most so often: counting them takes longer the more there is."""
BAR_CELLS = 20
SHORT_DIGITS = 12
MOVING_COLUMNS = (
    Column("phase"), Column(""), Column("here", right=True), Column("of", right=True), Column("rate", right=True),
    Column("left", right=True), Column("uri"),
)  # fmt: skip
KEPT_COLUMNS = (Column("digest"), Column("size", right=True), Column("used", right=True), Column("held by"), Column("uri"))

Once = Annotated[bool, typer.Option("--once", metavar=FLAG, help="Once, not again and again; so it is where there is no terminal.")]


def _number(seconds: float) -> float:
    """nan is on no side of a bound."""
    if seconds != seconds:
        raise typer.BadParameter("nan is no number of seconds")
    return seconds


Interval = Annotated[
    float, typer.Option("--interval", metavar="SECONDS", min=0.1, max=3600, callback=_number, help="Until it is drawn again.")
]


@dataclass(frozen=True, slots=True)
class Frame:
    """One look at an agent.

    Attributes:
        kept: the most recently used first.
        kept_at_s: when `usage` and `kept` were asked for, on the monotonic clock.
        silent: why it doesn't answer now; None: it does.
    """

    socket: str
    status: AgentStatus
    usage: Usage
    kept: Sequence[SnapshotInfo]
    kept_at_s: float
    silent: str | None = None


def top(session: Session, once: Once = False, interval: Interval = 1.0) -> ExitCode:
    """Show what the node's agent does: what moves and how fast, what is cached, who holds it, and the room.

    Until Ctrl-C; with --once, --json, or where stdout is no terminal, once.
    """
    with lazy.named_agent(session.settings()) as agent:
        frame = look(agent, None)
        if once or session.output.style.as_json or not session.output.out_is_terminal:
            session.finish(**document_of(frame))
            for line in lines_of(frame, session.output.out_width):
                session.output.line(line)
            return ExitCode.OK

        def draw(width: int, height: int) -> Sequence[str]:
            nonlocal frame
            frame = _look_again(agent, frame)
            return _fitting(lines_of(frame, width), height)

        with suppress(KeyboardInterrupt):  # how one leaves it
            lazy.top_screen(session.output, draw, interval)
    return ExitCode.OK


def look(agent: RemoteCache, before: Frame | None) -> Frame:
    """An agent now; what takes long to ask is as in `before` while that is young."""
    now_s = time.monotonic()
    if before is not None and now_s - before.kept_at_s < KEPT_AGE_S:
        return replace(before, status=agent.client.status(brief=True), silent=None)
    return Frame(str(agent.socket), agent.client.status(brief=True), agent.usage(), agent.list(), now_s)


def _look_again(agent: RemoteCache, before: Frame) -> Frame:
    try:
        return look(agent, before)
    except AgentUnreachable as error:
        return replace(before, silent=error.message)  # it may come back: an upgrade takes seconds


# -- for people ---------------------------------------------------------------------------------------------------------


def lines_of(frame: Frame, width: int | None = None) -> list[str]:
    """A frame as text. `width`: of the terminal, in cells; None: no terminal."""
    moving, kept = frame.status.moving, frame.kept
    rate = sum(each.rate_bytes_per_s for each in moving)
    lines = [*_head(frame), "", f"moving    {counted(len(moving), 'model')}, {format_rate(rate)}"]
    if moving:
        lines += _table(MOVING_COLUMNS, map(_moving_row, moving), width)
    lines += ["", f"cached    {counted(len(kept), 'model')}, {format_bytes(frame.usage.content_bytes)}"]
    if kept:
        lines += _table(KEPT_COLUMNS, map(_kept_row, kept), width)
    return lines


def _head(frame: Frame) -> Iterator[str]:
    status, usage = frame.status, frame.usage
    state = ", ending" if status.draining else ""
    yield f"agent     {status.version} at {frame.socket}, up {format_age(status.started_at_s)}{state}"
    if frame.silent is not None:
        yield f"silent    {frame.silent}; what follows is the last that it said"
    yield f"store     {status.root}"
    used = usage.file_system_bytes - usage.free_bytes
    share = used / usage.file_system_bytes if usage.file_system_bytes else 0.0
    yield f"disk      {_bar(share)} {share:4.0%} of {format_bytes(usage.file_system_bytes)}, {format_bytes(usage.free_bytes)} free"
    limits = usage.limits
    cap = "" if limits.max_bytes is None else f"; cap {format_bytes(limits.max_bytes)}"
    yield f"room      {format_bytes(usage.available_bytes)} available, {format_bytes(usage.evictable_bytes)} evictable{cap}"
    yield f"held      {format_bytes(usage.leased_bytes)} leased, {format_bytes(usage.pinned_bytes)} pinned"
    if status.denials:
        yield f"denied    {', '.join(f'{code} {count:,}' for code, count in sorted(status.denials.items()))}"


def _moving_row(progress: Progress) -> tuple[str, ...]:
    look = look_of_fetch(progress)
    left = "" if look.eta_s is None else format_duration(max(1.0, look.eta_s))
    rate = format_rate(look.rate_bytes_per_s or 0.0)
    of = format_bytes(look.bytes_total) if look.bytes_total else ""
    what = look.title if look.waiting is None else f"{look.title}\n{look.waiting}"
    return look.phase, _bar(look.share), format_bytes(look.bytes_done), of, rate, left, what


def _kept_row(info: SnapshotInfo) -> tuple[str, ...]:
    return (
        info.digest.hex[:SHORT_DIGITS],
        format_bytes(info.size_bytes),
        format_age(info.last_used_at_s),
        "\n".join(f"{lease.kind} {lease.holder}" for lease in info.leases),
        "\n".join(ref.key.uri for ref in info.refs),
    )


def _table(columns: tuple[Column, ...], rows: Iterator[tuple[str, ...]], width: int | None) -> list[str]:
    return table_lines(Table(columns, tuple(tuple(printable(cell) for cell in row) for row in rows)), width)


def _bar(share: float) -> str:
    full = round(max(0.0, min(1.0, share)) * BAR_CELLS)
    return f"[{'#' * full}{'.' * (BAR_CELLS - full)}]"


def _fitting(lines: Sequence[str], height: int) -> Sequence[str]:
    """As many lines as a terminal shows."""
    left = len(lines) - (height - 1)
    return lines if left <= 1 else [*lines[: height - 1], f"… and {counted(left, 'line')} more"]


# -- for programs -------------------------------------------------------------------------------------------------------


def document_of(frame: Frame) -> dict[str, object]:
    """A frame for programs."""
    status = frame.status
    room = documents.of_usage(frame.usage, status.root)
    del room["root"]
    return {
        "socket": frame.socket,
        "version": status.version,
        "root": str(status.root),
        "started_at_s": status.started_at_s,
        "draining": status.draining,
        "room": room,
        "moving": [look_of_fetch(each).fields for each in status.moving],
        "denials": [{"code": code, "count": count} for code, count in sorted(status.denials.items())],
        "snapshots": [documents.of_snapshot(info) for info in frame.kept],
    }
