"""The name of one object, or one version of it, as a single line of text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote

KEY_SAFE = "/~"
"""Characters that S3 wants unescaped in a path, beside letters, digits and `-._` (Signature Version 4, UriEncode)."""
NULL_VERSION = "null"
"""Version id of what was written while versioning was off or suspended; it may be overwritten."""


@dataclass(frozen=True, slots=True)
class ObjectName:
    """A key in a bucket; with a version id, that version of it."""

    bucket: str
    key: str
    version_id: str | None = None

    @property
    def query(self) -> str:
        return "" if self.version_id is None else f"?versionId={quote(self.version_id, safe='~')}"

    @property
    def locator(self) -> str:
        """`bucket/percent-encoded-key[?versionId=…]`."""
        return f"{self.bucket}/{quote(self.key, safe=KEY_SAFE)}{self.query}"

    @classmethod
    def of_locator(cls, locator: str) -> Self:
        place, _, query = locator.partition("?")
        bucket, _, key = place.partition("/")
        return cls(bucket, unquote(key), unquote(query.removeprefix("versionId=")) if query else None)

    @property
    def address(self) -> str:
        """For errors."""
        return f"s3://{self.bucket}/{self.key}{self.query}"
