"""The name of one generation of one object, as a single line of text, and where the JSON API has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote


@dataclass(frozen=True, slots=True)
class ObjectName:
    """An object of a bucket; with a generation, that version of it."""

    bucket: str
    name: str
    generation: str | None = None

    @property
    def locator(self) -> str:
        """`bucket/percent-encoded-name[?generation=N]`."""
        return f"{self.bucket}/{quote(self.name)}{self._query}"

    @classmethod
    def of_locator(cls, locator: str) -> Self:
        place, _, query = locator.partition("?")
        bucket, _, name = place.partition("/")
        return cls(bucket, unquote(name), query.removeprefix("generation=") or None)

    @property
    def address(self) -> str:
        """For errors."""
        return f"gs://{self.bucket}/{self.name}{self._query}"

    def url(self, base_url: str) -> str:
        """Of the object's metadata. Source: Cloud Storage JSON API, Objects: get; a name is one segment of the path."""
        return f"{bucket_url(base_url, self.bucket)}/o/{quote(self.name, safe='')}{self._query}"

    def media_url(self, base_url: str) -> str:
        """Of the object's bytes: refused (412) or absent (404) once it is another generation."""
        match = "" if self.generation is None else f"&ifGenerationMatch={self.generation}"
        return f"{self.url(base_url)}{'&' if self._query else '?'}alt=media{match}"

    @property
    def _query(self) -> str:
        return "" if self.generation is None else f"?generation={self.generation}"


def bucket_url(base_url: str, bucket: str) -> str:
    return f"{base_url}/storage/v1/b/{quote(bucket, safe='')}"
