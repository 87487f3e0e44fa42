"""What a name leads to, or what is told of one that leads nowhere, or to several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from modelcache.abc.store import SnapshotInfo
from modelcache.digest import nearly_digits
from modelcache.errors import AmbiguousName, NotCached

DIGITS = 16
"""Of a digest, where it is shown beside others."""
SHOWN = 3
"""Candidates in a hint; `modelcache ls` shows all."""


Listed = Callable[[], Sequence[SnapshotInfo]]
"""Everything that is here; called for names that could be a part of a digest."""


def the_one(found: Sequence[SnapshotInfo], name: str, uri: str | None, listed: Listed) -> SnapshotInfo:
    """What was found under a name.

    Args:
        name: as it was asked for.
        uri: what it was read as; None: as a digest.

    Raises:
        NotCached: nothing; the error says what it may have been meant as. AmbiguousName: several.
    """
    if not found:
        raise _not_cached(name, uri, listed)
    if len(found) > 1:
        shown = ", ".join(info.digest.hex[:DIGITS] for info in found)
        raise AmbiguousName(f"`{uri or name}` names {len(found)} snapshots: {shown}", got=shown)
    return found[0]


@contextmanager
def telling_digits(name: str, listed: Listed) -> Iterator[None]:
    """For who hands names on as paths: the NotCached of this block is that of `the_one`."""
    try:
        yield
    except NotCached as error:
        if nearly_digits(name) is None:
            raise
        raise _not_cached(name, error.address, listed) from None


def _not_cached(name: str, uri: str | None, listed: Listed) -> NotCached:
    why = nearly_digits(name)
    if why is None:
        return NotCached(f"`{uri or name}` is not cached", address=uri)
    meant = [info for info in listed() if info.digest.hex.startswith(name.lower())]
    shown = [f"`{info.digest.hex[:DIGITS]}` ({info.refs[0].key.uri if info.refs else 'no URI'})" for info in meant[:SHOWN]]
    more = f" and {len(meant) - SHOWN} more" if len(meant) > SHOWN else ""
    hint = f"of what is here {', '.join(shown)}{more} begin{'s' if len(meant) == 1 else ''} so" if meant else None
    return NotCached(f"`{uri}` is not cached, and {why}", address=uri, hint=hint)
