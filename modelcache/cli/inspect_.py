"""`modelcache inspect`: what a checkpoint holds, without fetching it."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import TYPE_CHECKING, Annotated

import typer

from modelcache.cli import lazy
from modelcache.cli.completion import complete_name
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.interrupts import cancelled_by_signals
from modelcache.cli.options import OriginOptions
from modelcache.cli.session import Session
from modelcache.cli.tables import Column, Table, counted, one_line
from modelcache.patience import Cancellation
from modelcache.units import format_bytes

if TYPE_CHECKING:
    from modelcache.inspecting import Inspected

COLUMNS = (Column("size", right=True), Column("dtype"), Column("shape"), Column("tensor"))

What = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A URI or path, here or not; or a digest of a model that is here.", autocompletion=complete_name),
]


def inspect(session: Session, name: What, origin: OriginOptions) -> ExitCode:
    """Show the tensors of a model's safetensors files, from their headers alone.

    A model that is not here is not fetched: only the first bytes of its files are read at the origin.
    """
    cancel = Cancellation()
    with cancelled_by_signals(cancel, session.output), session.open_store(session.config(origin)) as cache:
        found = lazy.inspect(cache, name, cancel)
    session.finish(
        uri=found.uri,
        revision=found.revision,
        here=found.here,
        read_bytes=found.read_bytes,
        files=[_document(path, found) for path, _ in found.headers],
    )
    _print(session, found)
    return ExitCode.OK


def _document(path: str, found: Inspected) -> dict[str, object]:
    header = dict(found.headers)[path]
    return {
        "path": path,
        "size_bytes": header.file_bytes,
        "metadata": dict(header.metadata),
        "tensors": [
            {"name": each.name, "dtype": each.dtype.label, "shape": list(each.shape), "start": each.span.start, "stop": each.span.stop}
            for each in header.tensors
        ],
    }


def _print(session: Session, found: Inspected) -> None:
    output = session.output
    entries = [entry for _, header in found.headers for entry in header.tensors]
    size_bytes = sum(entry.span.size_bytes for entry in entries)
    dtypes = Counter[str]()
    for entry in entries:
        dtypes[entry.dtype.label] += entry.span.size_bytes
    where = "here" if found.here else f"at the origin; {format_bytes(found.read_bytes)} read"
    output.line(f"uri         {found.uri}")
    output.line(f"revision    {found.revision} ({where})")
    output.line(f"files       {counted(len(found.headers), 'file')}, {format_bytes(size_bytes)} of tensors")
    output.line(f"tensors     {len(entries):,} with {sum(prod(entry.shape) for entry in entries):,} elements")
    output.line(f"dtypes      {', '.join(f'{name} {format_bytes(count)}' for name, count in dtypes.most_common())}")
    for path, header in found.headers:
        output.line("")
        output.line(path)
        rows = tuple(
            (format_bytes(each.span.size_bytes), each.dtype.label, "×".join(map(str, each.shape)) or "-", one_line(each.name))
            for each in header.tensors
        )
        output.table(Table(COLUMNS, rows))
