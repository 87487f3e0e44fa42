"""A refusal for want of room, for who may know whose models take it."""

from __future__ import annotations

from collections.abc import Sequence

from modelcache.abc.store import Lease
from modelcache.errors import NoSpace

NAMED = 5
"""A node of a hundred pods has a hundred holders; `modelcache ls` names all of them."""


def with_holders(error: NoSpace, leases: Sequence[Lease]) -> NoSpace:
    """The same, with who holds what can't be freed."""
    holders = sorted({lease.holder for lease in leases})
    if not holders:
        return error
    more = f" and {len(holders) - NAMED} more" if len(holders) > NAMED else ""
    return NoSpace(
        f"{error.message}, by {', '.join(f'`{holder}`' for holder in holders[:NAMED])}{more}",
        needed_bytes=error.needed_bytes,
        available_bytes=error.available_bytes,
        evictable_bytes=error.evictable_bytes,
        held_bytes=error.held_bytes,
        address=error.address,
        hint=error.hint,
    )
