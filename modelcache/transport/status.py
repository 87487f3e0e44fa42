"""What an origin's status means to the caller."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from modelcache.errors import AccessDenied, ModelCacheError, NotFound, OriginBusy, ProtocolViolation, SourceChanged

MAX_RETRY_AFTER_S = 3600.0
"""A longer `Retry-After` is read as this; a fetch gives up earlier than that anyway."""

_CODE = re.compile(rb"<Code>([A-Za-z0-9._-]{1,64})</Code>|\A\s*\{\s*\"error\":.*?\"reason\":\s*\"([A-Za-z0-9._-]{1,64})\"", re.DOTALL)
_EXPIRED_CODES = frozenset({"ExpiredToken", "TokenRefreshRequired", "RequestExpired"})
"""S3 sends ExpiredToken with status 400 (Amazon S3 API reference, list of error codes)."""
_BUSY_CODES = frozenset({"rateLimitExceeded", "userRateLimitExceeded"})
"""Google sends them with 429, and of old with 403 (Cloud Storage JSON API, status and error codes)."""


def origin_code(body: bytes) -> str | None:
    """The `<Code>` of an S3- or GCS-style XML error, such as `SlowDown`, or the first `reason` of Google's JSON one; None if there
    is none."""
    match = _CODE.search(body)
    return (match.group(1) or match.group(2)).decode() if match else None


def wants_renewal(status: int, code: str | None) -> bool:
    """Whether fresh credentials could turn this refusal."""
    return (status in (401, 403) and code not in _BUSY_CODES) or (400 <= status < 500 and code in _EXPIRED_CODES)


def error_of_status(status: int, headers: Mapping[str, str], *, address: str, listed: bool, code: str | None = None) -> ModelCacheError:
    """The error that a status other than the hoped-for one means.

    Args:
        headers: of the answer, looked up without regard to case.
        listed: the object was listed before, so its absence is a change; False: it is only being looked for.
        code: the origin's own error code.
    """
    said = _said(status, code)
    if wants_renewal(status, code) or status in (402, 407, 451):
        hint = "the proxy wants credentials: put them into the proxy setting" if status == 407 else None
        return AccessDenied(f"the origin refused ({said})", address=address, hint=hint)
    if status in (404, 410):
        if listed:
            return SourceChanged(f"the object is gone ({said})", address=address)
        return NotFound(f"nothing there ({said})", address=address)
    if status in (412, 416):
        return SourceChanged(f"the object is no longer the listed version ({said})", address=address)
    if status in (408, 425, 429) or status >= 500 or code in _BUSY_CODES:
        return OriginBusy(f"the origin is busy ({said})", address=address, retry_after_s=retry_after_s(headers))
    return ProtocolViolation(f"an unexpected answer ({said})", address=address, got=str(status))


def retry_after_s(headers: Mapping[str, str], *, now_s: float | None = None) -> float | None:
    """`Retry-After` in seconds from now, from either form (RFC 9110 §10.2.3); None if absent or unreadable.

    Args:
        now_s: Unix time to count a date from; None: the answer's own `Date`, else this machine's clock.
    """
    text = headers.get("retry-after")
    if text is None:
        return None
    if text.strip().isdecimal() and text.isascii():
        return min(float(text), MAX_RETRY_AFTER_S)
    at_s = _unix_time(text)
    if at_s is None:
        return None
    if now_s is None:
        now_s = _unix_time(headers.get("date", "")) or time.time()
    return min(max(0.0, at_s - now_s), MAX_RETRY_AFTER_S)


def _unix_time(text: str) -> float | None:
    try:
        when = parsedate_to_datetime(text)
        return when.replace(tzinfo=when.tzinfo or UTC).timestamp()
    except (ValueError, TypeError, OverflowError):  # OverflowError: a number in it is one of no date
        return None


def _said(status: int, code: str | None) -> str:
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    return phrase if code is None else f"{phrase}, {code}"
