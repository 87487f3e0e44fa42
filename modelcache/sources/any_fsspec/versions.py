"""What filesystems state about a file's version, in the words of each. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from modelcache.digest import HEX_LENGTHS, Algorithm, Digest
from modelcache.errors import ProtocolViolation

STRONG = ("version_id", "versionId", "VersionId", "generation", "ETag", "etag", "e_tag", "sha", "hex", "content_md5", "md5")
"""Names of what changes with every content: versions, strong ETags, object ids of git, checksums."""
TIMES = (
    "mtime", "modify", "modified", "LastModified", "last_modified", "lastModified", "Last-Modified", "modificationTime",
    "last_write_time", "updated", "updated_at",
)  # fmt: skip
"""Names of the time of the last write."""
SETTLED_S = 60.0
"""A time of whole seconds names one version once it is this much in the past: two writes can't have shared it. As for `Last-Modified`."""
_LAST_ZONE = timezone(timedelta(hours=-12))
"""In which a time without a zone is latest, so that it never seems to be further in the past than it is."""
_FTP_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\.\d{1,6})?")
"""RFC 3659 §2.3, always UTC."""
_MILLISECONDS_FROM = 10**11
"""A number of seconds that is larger than this is one of milliseconds (HDFS): as seconds it would be after the year 5000."""


@dataclass(frozen=True, slots=True)
class Stated:
    """What a filesystem states of a file.

    Attributes:
        name: names this version and no other; empty if nothing that it states does.
        seen: all that it states of the version: two that differ are different, two alike may be too.
        digests: over all its bytes.
    """

    size_bytes: int
    name: str
    seen: str
    digests: tuple[Digest, ...] = ()


def stated(info: Mapping[str, Any], modified: datetime | None, now_s: float, *, address: str) -> Stated:
    """
    Args:
        info: what the filesystem's `info` gave.
        modified: what its `modified` gave, where `info` has no time.
        now_s: Unix time.

    Raises:
        ProtocolViolation: it does not state the size.
    """
    size = info.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        hint = "without a size its end can't be told from a broken connection"
        raise ProtocolViolation("the filesystem does not state the file's size", address=address, hint=hint)
    return replace(_version(info, size, modified, now_s), digests=_digests(info))


def _version(info: Mapping[str, Any], size: int, modified: datetime | None, now_s: float) -> Stated:
    for key in STRONG:
        value = _strong(info.get(key))
        if value:
            return Stated(size, f"{key}:{value}", f"{key}:{value}/{size}")
    at = next((time for time in map(_time, map(info.get, TIMES)) if time is not None), modified)
    if at is None:
        return Stated(size, "", str(size))
    text = f"{at.astimezone(UTC).isoformat()}/{size}"
    exact = at.microsecond != 0 or now_s - at.timestamp() >= SETTLED_S
    return Stated(size, text if exact else "", text)


def _digests(info: Mapping[str, Any]) -> tuple[Digest, ...]:
    """Azure's Content-MD5: what the uploader said, or the service computed of an upload in one piece; many blobs have none."""
    stated_md5 = (info.get("content_settings") or {}).get("content_md5")
    if not isinstance(stated_md5, (bytes, bytearray)) or 2 * len(stated_md5) != HEX_LENGTHS[Algorithm.MD5]:
        return ()
    return (Digest(Algorithm.MD5, stated_md5.hex()),)


def has_time(info: Mapping[str, Any]) -> bool:
    """Whether an `info` states a version or a time that can be read."""
    return any(_strong(info.get(key)) for key in STRONG) or any(_time(info.get(key)) is not None for key in TIMES)


def _strong(value: object) -> str:
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or value in ("", "null") or value.startswith("W/"):
        return ""
    return value.strip('"')


def _time(value: object) -> datetime | None:
    """A time in UTC; None if it can't be read exactly (the short forms of `ls -l`), or is none. Where a zone is not told, the last."""
    try:
        found = _read(value)
        if found is not None:
            return (found if found.tzinfo is not None else found.replace(tzinfo=_LAST_ZONE)).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        pass  # a month 13, a year that no calendar has
    return None


def _read(value: object) -> datetime | None:
    if isinstance(value, datetime):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        return datetime.fromtimestamp(value / 1000 if value > _MILLISECONDS_FROM else value, UTC)
    if not isinstance(value, str):
        return None
    if found := _FTP_TIME.fullmatch(value):
        micros = int(float(found[7] or 0) * 1_000_000)
        year, month, day, hour, minute, second = (int(found[number]) for number in range(1, 7))
        return datetime(year, month, day, hour, minute, min(second, 59), micros, UTC)
    return datetime.fromisoformat(value)
