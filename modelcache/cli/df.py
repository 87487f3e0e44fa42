"""`modelcache df`: where the room went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelcache.cli import documents
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.session import Session
from modelcache.cli.tables import Column, Table, counted
from modelcache.units import format_bytes

if TYPE_CHECKING:
    from modelcache.abc.store import Usage

COLUMNS = (Column("what"), Column("bytes", right=True), Column("meaning"))


def df(session: Session) -> ExitCode:
    """Show how much room the store takes, who holds it, and what is left under the limits."""
    with session.open_cache(looks=True) as cache:
        usage, root = cache.usage(), cache.root
    session.finish(**documents.of_usage(usage, root))
    session.output.line(f"store: {root}")
    session.output.line("")
    session.output.table(Table(COLUMNS, tuple(_rows(usage))))
    return ExitCode.OK


def _blocks(usage: Usage) -> str:
    if usage.doubly_used_bytes == 0:
        return "blocks of all that"
    return f"blocks of all that; without block sharing {format_bytes(usage.blobs_bytes)}"


def _rows(usage: Usage) -> list[tuple[str, str, str]]:
    limits = usage.limits
    cap = "no cap over the store" if limits.max_bytes is None else f"cap over the store: {format_bytes(limits.max_bytes)}"
    shares = f"{limits.high_watermark:.0%} may be used, by anyone; eviction goes down to {limits.low_watermark:.0%}"
    rows = [
        ("models", usage.content_bytes, f"{counted(usage.snapshots, 'model')}; apart from each other {format_bytes(usage.apart_bytes)}"),
        ("  own", usage.own_bytes, "of one model alone; goes with it"),
        ("  shared", usage.shared_bytes, "of several models, stored once"),
        ("  on disk", usage.blobs_bytes - usage.doubly_used_bytes, _blocks(usage)),
        ("  leased", usage.leased_bytes, "held by anyone, pins among them"),
        ("  pinned", usage.pinned_bytes, "held until unpinned"),
        ("  evictable", usage.evictable_bytes, "freed when all that nobody holds goes"),
        ("arriving", usage.ingest_bytes, "fetches in progress, and interrupted ones"),
        ("trash", usage.trash_bytes, "on its way out"),
        ("quarantine", usage.quarantine_bytes, "damaged, kept aside"),
        ("file system", usage.file_system_bytes, shares),
        ("  free", usage.free_bytes, cap),
        ("available", usage.available_bytes, "for the next fetch, without evicting"),
    ]
    return [(what, format_bytes(count), meaning) for what, count, meaning in rows]
