"""`modelcache show`: everything about one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelcache.cli import documents
from modelcache.cli.arguments import Name
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.session import Session
from modelcache.cli.tables import Column, Table, counted, format_age, format_time
from modelcache.units import format_bytes

if TYPE_CHECKING:
    from modelcache.abc.snapshot import Ref, RefHead
    from modelcache.abc.store import Lease, SnapshotInfo
    from modelcache.manifest import Manifest

FILE_COLUMNS = (Column("size", right=True), Column("sha256"), Column("digest"), Column("file"))
LEASE_COLUMNS = (Column("hold"), Column("since"), Column("until"), Column("holder"))
SHORT_DIGITS = 16


def show(session: Session, name: Name) -> ExitCode:
    """Show what a name resolved to, who holds it, and every file with its digest.

    A digest is "stated" if the origin named one and it was compared, and "computed" if the origin named none: then the first
    complete fetch defined it. The whole digests are in --json and with -v.
    """
    with session.open_cache(looks=True) as cache:
        info = cache.find(name)
        manifest, refs = cache.manifest(str(info.digest)), cache.refs(str(info.digest))
        verified_at_s = cache.verified_at_s(str(info.digest))
    session.finish(**documents.of_details(info, manifest, refs), verified_at_s=verified_at_s)
    _print(session, info, manifest, refs, verified_at_s)
    return ExitCode.OK


def _print(session: Session, info: SnapshotInfo, manifest: Manifest, refs: Sequence[Ref], verified_at_s: float | None) -> None:
    output = session.output
    extent = f"{format_bytes(info.size_bytes)} in {counted(info.file_count, 'file')}"
    output.line(f"snapshot  {info.digest}")
    output.line(f"path      {info.path}")
    output.line(f"size      {extent}; {format_bytes(info.own_bytes)} of it its own, {format_bytes(info.shared_bytes)} shared")
    output.line(f"on disk   removing it frees {format_bytes(info.freed_bytes)}")
    output.line(f"used      {format_age(info.last_used_at_s)} ago")
    verified = "when it arrived" if verified_at_s is None else f"{format_age(verified_at_s)} ago, from the disk"
    output.line(f"verified  {verified}")
    for ref in info.refs:
        output.line("")
        for line in _ref_lines(ref):
            output.line(line)
    if info.leases:
        output.line("")
        output.table(Table(LEASE_COLUMNS, tuple(_lease_row(lease) for lease in info.leases)))
    output.line("")
    stated = documents.stated_digests(refs)
    digits = 64 if output.style.verbose else SHORT_DIGITS
    files = tuple(
        (format_bytes(item.size_bytes), item.sha256.hex[:digits], "stated" if stated.get(item.path) else "computed", item.path)
        for item in manifest.files
    )
    output.table(Table(FILE_COLUMNS, files))


def _lease_row(lease: Lease) -> tuple[str, ...]:
    until = "-" if lease.expires_at_s is None else format_time(lease.expires_at_s)
    return str(lease.kind), format_time(lease.created_at_s), until, lease.holder


def _ref_lines(ref: RefHead) -> list[str]:
    return [
        f"uri       {ref.key.uri}",
        f"origin    {ref.key.origin}",
        *([f"namespace {ref.key.compartment} (isolated)"] if ref.key.compartment else []),
        f"revision  {ref.revision}{' (never changes)' if ref.immutable else ''}",
        f"resolved  {format_time(ref.created_at_s)}, confirmed {format_age(ref.checked_at_s)} ago",
    ]
