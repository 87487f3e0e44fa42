"""Where an answer sends its asker on to."""

from __future__ import annotations

from collections.abc import Mapping

from modelcache.errors import InvalidUri, ProtocolViolation
from modelcache.transport.target import Target

MAX_REDIRECTS = 5
_STATUSES = frozenset({301, 302, 303, 307, 308})


def redirected(target: Target, status: int, headers: Mapping[str, str]) -> Target | None:
    """Where an answer of this target redirects to (userinfo in it is ignored); None if it doesn't.

    Raises:
        ProtocolViolation: that can't be followed.
    """
    location = headers.get("location")
    if status not in _STATUSES or location is None:
        return None
    try:
        there = target.redirected(location)
    except InvalidUri as error:
        raise ProtocolViolation(f"a redirect that can't be followed: {error.message}", address=str(target)) from None
    if target.scheme == "https" and there.scheme != "https":
        raise ProtocolViolation("a redirect from https to http is refused", address=str(target), got=str(there))
    return there
