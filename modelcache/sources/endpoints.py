"""Endpoints that somebody configured."""

from __future__ import annotations

from modelcache.errors import BadConfig, InvalidUri
from modelcache.transport import Target, safe_address


def checked_endpoint(endpoint: str, what: str) -> Target:
    """An endpoint taken apart; `what` is its name in errors.

    Raises:
        BadConfig: it is no URL, or more of one than scheme, host, port and path.
    """
    try:
        target = Target.parse(endpoint)
    except InvalidUri as error:
        shown, hint = safe_address(endpoint), error.hint or "write its whole URL, such as `https://host:9000`"
        raise BadConfig(f"{what} `{shown}` can't be used: {error.message}", got=shown, hint=hint) from None
    if target.userinfo is not None or "?" in endpoint or "#" in endpoint:
        raise BadConfig(f"{what} holds more than scheme, host, port and path", got=safe_address(endpoint))
    return target
