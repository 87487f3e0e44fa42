"""The settings that are tables of places: mirrors, and mounts of claims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelcache.config.kinds import Entry, ListOf, MapOf, Scalar, TableOf
from modelcache.config.scalars import ENDPOINT, FLAG, PATH, TEXT
from modelcache.errors import BadConfig, InvalidUri
from modelcache.mirrors import Mirror
from modelcache.uri import parse_uri


def _ratio(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 1e6:
        raise BadConfig(f"`{text}` is not a ratio from 1 to a million", got=text)
    return value


def _claim(name: str) -> None:
    try:
        usable = parse_uri(f"pvc://{name}")[0].authority == name
    except InvalidUri:
        usable = False
    if not usable:
        raise BadConfig(f"`{name}` can't be the name of a claim", got=name)


@dataclass(frozen=True)
class _Claims(MapOf):
    """As a text: `CLAIM=/PATH,…`, or JSON."""

    def of_text(self, text: str) -> Any:
        if text.startswith("{"):
            return super().of_text(text)
        pairs = [pair.partition("=") for pair in text.split(",")]
        if not all(claim and path for claim, _, path in pairs):
            raise BadConfig("not `CLAIM=/PATH`, divided by commas", got=text)
        return self.of_toml({claim.strip(): path.strip() for claim, _, path in pairs})


RATIO = Scalar("a ratio such as `200`", _ratio, types=(int, float, str), example="200")
CLAIMS = _Claims(PATH, "<claim>", _claim)
MIRRORS = ListOf(
    TableOf(
        (
            Entry(
                "from", TEXT, "URIs that begin so, up to a `/`: `hf://`, `hf://owner/`, `s3://bucket/dir`", required=True, argument="prefix"
            ),
            Entry(
                "to",
                TEXT,
                "what stands in its place, with `{name}` for the rest of the name and `{revision}`",
                required=True,
                argument="target",
            ),
            Entry("endpoint", ENDPOINT, "endpoint URL that serves an `s3`, `gs` or `hf` target"),
            Entry("ca_file", PATH, "CA bundle of it"),
            Entry("profile", TEXT, "of `s3`: section of the SDK's own files that has the credential"),
            Entry("credentials_file", PATH, "of `gs` its JSON, of `hf` the file with its token, of fsspec's its storage options (JSON)"),
            Entry("anonymous", FLAG, "send no credential"),
            Entry("region", TEXT, "of `s3`"),
            Entry("path_style", FLAG, "of `s3`: bucket in the path instead of the host name"),
            Entry("fallback", FLAG, "what the mirror doesn't have, or can't serve, comes from its original place"),
        ),
        Mirror,
    ),
    "a list of mirrors",
)
