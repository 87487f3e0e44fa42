"""Places that one URI can come from, in turn: a mirror, and the original one behind it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from modelcache.digest import Digest
from modelcache.ensure import Ensured
from modelcache.errors import AccessDenied, AccessUnproved, NotFound, OriginUntrusted, Unavailable
from modelcache.permission import Admission

T = TypeVar("T")
_log = logging.getLogger(__name__)


def first_hit(places: Sequence[Admission], look: Callable[[Admission], Ensured | None]) -> Ensured | None:
    """What is here of the first place of which something is.

    Raises:
        AccessUnproved: of some place, and nothing of another.
    """
    refusal: AccessUnproved | None = None
    for place in places:
        try:
            found = look(place)
        except AccessUnproved as error:
            refusal = refusal or error
            continue
        if found is not None:
            return found
    if refusal is not None:
        raise refusal
    return None


def in_turn(places: Sequence[Admission], ask: Callable[[Admission], T], settles: Callable[[T], bool] = lambda found: True) -> T:
    """Ask the first place, and the next one only where it has nothing or can't serve: not where it refuses, or is not who it should
    be. What does not settle it (a stale version) counts when no later place gives anything.

    Raises:
        AccessUnproved: of the first place that could not be asked for a proof, and no later one serves.
        What `ask` raises of the place that nobody was asked after.
    """
    unsettled: list[T] = []
    unproved: AccessUnproved | None = None
    for place, following in zip(places, [*places[1:], None], strict=True):
        try:
            found = ask(place)
        except (NotFound, Unavailable, AccessDenied) as error:
            if isinstance(error, AccessUnproved):
                unproved = unproved or error
            last = following is None or (isinstance(error, AccessDenied | OriginUntrusted) and not isinstance(error, AccessUnproved))
            if last and not unsettled:
                if unproved is None:
                    raise
                raise unproved from unproved.__cause__
            if last or following is None:
                break
            _log.warning("%s; now from %s", error, following.key.origin)
            continue
        if settles(found):
            return found
        unsettled.append(found)
    return unsettled[0]


def expect_granted(places: Sequence[Admission], manifest: Digest) -> None:
    """Raises AccessUnproved: none of the places may show this snapshot."""
    for place in places:
        try:
            if manifest in place.last():
                return
        except AccessUnproved:
            continue
    uri = places[0].key.uri
    raise AccessUnproved(f"the right to `{uri}` is not proved, or not any more", address=uri)
