"""`modelcache pin` and `unpin`: keep a model whatever else needs room."""

from __future__ import annotations

from typing import Annotated

import typer

from modelcache.cli import documents
from modelcache.cli.arguments import Name
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.session import Session
from modelcache.cli.tables import counted


def pin(
    session: Session,
    name: Name,
    holder: Annotated[str, typer.Option("--holder", metavar="WHO", help="In whose name it is kept.")] = "user",
) -> ExitCode:
    """Keep a model until it is unpinned: neither eviction nor rm removes it."""
    with session.open_cache(looks=True) as cache:
        lease = cache.pin(name, holder=holder)
    session.finish(digest=str(lease.manifest), lease=documents.of_lease(lease))
    session.output.line(f"pinned {lease.manifest} for {lease.holder}")
    return ExitCode.OK


def unpin(
    session: Session,
    name: Name,
    holder: Annotated[str | None, typer.Option("--holder", metavar="WHO", help="Only the pin in this name; all if left out.")] = None,
) -> ExitCode:
    """End the pins of a model."""
    with session.open_cache(looks=True) as cache:
        digest = cache.find(name).digest
        ended = cache.unpin(str(digest), holder=holder)
    session.finish(digest=str(digest), unpinned=ended)
    session.output.line(f"ended {counted(ended, 'pin')} of {digest}")
    return ExitCode.OK
