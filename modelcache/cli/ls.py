"""`modelcache ls`: what is here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelcache.cli import documents
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.session import Session
from modelcache.cli.tables import Column, Table, format_age, one_line
from modelcache.errors import NotCached
from modelcache.units import format_bytes

if TYPE_CHECKING:
    from modelcache.abc.store import SnapshotInfo

SHORT_DIGITS = 12
COLUMNS = (
    Column("digest"), Column("size", right=True), Column("own", right=True), Column("shared", right=True), Column("freed", right=True),
    Column("files", right=True), Column("used", right=True), Column("held by"), Column("uri"),
)  # fmt: skip


def ls(session: Session) -> ExitCode:
    """List the models that are here, most recently used first.

    OWN is what nothing else needs, and goes with the model; SHARED stays for the others that show it. FREED is the room on the disk
    that removing it alone gives back. USED is how long ago.
    """
    infos: Sequence[SnapshotInfo] = ()
    try:
        with session.open_cache(looks=True) as cache:
            root, infos = cache.root, cache.list()
    except NotCached:
        root = session.config().root  # there is no store
    session.finish(root=str(root), snapshots=[documents.of_snapshot(info) for info in infos])
    if infos:
        session.output.table(Table(COLUMNS, tuple(_row(info) for info in infos)))
    else:
        session.output.note(f"nothing is cached in {root}")
    return ExitCode.OK


def _row(info: SnapshotInfo) -> tuple[str, ...]:
    return (
        info.digest.hex[:SHORT_DIGITS],
        format_bytes(info.size_bytes),
        format_bytes(info.own_bytes),
        format_bytes(info.shared_bytes),
        format_bytes(info.freed_bytes),
        f"{info.file_count:,}",
        format_age(info.last_used_at_s),
        "\n".join(one_line(f"{lease.kind} {lease.holder}") for lease in info.leases),
        "\n".join(ref.key.uri for ref in info.refs),
    )
