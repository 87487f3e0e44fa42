"""Mirrors: prefixes of URIs whose bytes come from somewhere else. A pure mapping; what a model is called stays as it was."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

from modelcache.errors import BadConfig, InvalidUri, NotFound
from modelcache.uri import ALIASES, StorageUri, parse_uri, redact_url
from modelcache.uri_places import KNOWN_SCHEMES

NAME, REVISION = "{name}", "{revision}"
_PREFIX = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<body>[^?#\s]*)")
_DEFAULT_REVISIONS = {"hf": "main", "modelscope": "master"}
"""Repositories: schemes whose places have named revisions, and the one that stands for none."""
_AUTHORITY_PARTS = {"file": 0, "hf": 2, "modelscope": 2}
"""How many parts of a URI are its authority; elsewhere one."""
_ENCODED = ("http", "https")
_ATTRIBUTES = {
    "s3": ("endpoint", "region", "ca_file", "profile", "path_style", "anonymous"),
    "gs": ("endpoint", "ca_file", "credentials_file", "anonymous"),
    "hf": ("endpoint", "ca_file", "credentials_file", "anonymous"),
    "http": (),
    "https": ("ca_file",),
} | dict.fromkeys(KNOWN_SCHEMES - {"s3", "gs", "hf", "http", "https", "hdfs", "webhdfs"}, ())
"""What a target of a scheme has besides its URI."""
_BY_FSSPEC = ("credentials_file",)
"""The same of all other schemes."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """One mirror: a `[[mirror]]` table of the settings. What it leaves out is as the settings of its target's scheme say; but one with an
    endpoint of its own is sent no token of theirs.

    Attributes:
        prefix: `from`: URIs that begin so, up to a `/` or their end, come from the mirror: `hf://`, `hf://meta-llama/`, `s3://bucket/dir`.
        target: `to`: what stands in its place. `{name}` is what follows the prefix (of a repository, only in its name; the path inside it
            goes to the end), and goes to the end where it is not written; `{revision}` is the URI's revision.
        endpoint: `http(s)://host[:port]` that serves an `s3`, `gs` or `hf` target.
        ca_file: PEM file with the CAs that vouch for it.
        profile: of an `s3` target, the section of the SDK's own files that has its credential (keys, or a process that gives some).
        credentials_file: of a `gs` target its JSON, of an `hf` target the file with its token, of one that fsspec serves the arguments of
            its filesystem (endpoint, CA and credential among them), as a JSON object.
        anonymous: no credential is sent.
        region, path_style: of an `s3` target, as in `S3Options`.
        fallback: whether a model that the mirror doesn't have, or can't serve just now, comes from its original place.
    """

    prefix: str
    target: str
    endpoint: str | None = None
    region: str | None = None
    ca_file: Path | None = None
    profile: str | None = None
    credentials_file: Path | None = None
    path_style: bool | None = None
    anonymous: bool | None = None
    fallback: bool = False

    def __post_init__(self) -> None:
        """Raises BadConfig: prefix or target can't be one."""
        prefix, target = _Prefix.read(self.prefix, "from"), _Prefix.read(self.target, "to")
        if NAME in self.prefix or REVISION in self.prefix:
            raise BadConfig("a mirror's `from` has no placeholders", got=self.prefix)
        if REVISION in self.target and prefix.scheme not in _DEFAULT_REVISIONS:
            raise BadConfig(f"`{prefix.scheme}://` URIs have no revision to put into a mirror's `to`", got=self.target)
        others = {name for names in _ATTRIBUTES.values() for name in names}.difference(_ATTRIBUTES.get(target.scheme, _BY_FSSPEC))
        for name in sorted(others):
            if getattr(self, name) is not None:
                raise BadConfig(f"a mirror's `{target.scheme}://` target has no `{name}`", got=str(getattr(self, name)))
        if REVISION in self.target and target.scheme in _DEFAULT_REVISIONS:
            raise BadConfig(f"a `{target.scheme}://` mirror takes revisions over by itself", got=self.target)

    @property
    def scheme(self) -> str:
        """The target's."""
        return _Prefix.read(self.target, "to").scheme


class Mirrors:
    """Which mirror serves a URI: that of the longest prefix."""

    def __init__(self, mirrors: Iterable[Mirror]) -> None:
        """Raises BadConfig: two mirrors of one prefix."""
        self._mirrors: dict[_Prefix, Mirror] = {}
        for mirror in mirrors:
            prefix = _Prefix.read(mirror.prefix, "from")
            if prefix in self._mirrors:
                raise BadConfig("two mirrors have the same `from`", got=mirror.prefix)
            self._mirrors[prefix] = mirror

    def find(self, uri: StorageUri) -> tuple[Mirror, StorageUri] | None:
        """The mirror and the URI of the same model there; None: it comes from its original place.

        A revision other than the scheme's default is in a mirror only where its target takes revisions: by `{revision}`, or
        because it is a repository itself. Other ones, and URIs with parameters, come from the original place if the mirror's
        `fallback` allows it.

        Raises:
            NotFound: the mirror can't have it, and has no fallback.
            BadConfig: what comes out is no URI.
        """
        found = [(prefix, mirror) for prefix, mirror in self._mirrors.items() if prefix.fits(uri)]
        if not found:
            return None
        prefix, mirror = max(found, key=lambda pair: len(pair[0].parts))
        problem = _not_mirrored(mirror, uri)
        if problem is None:
            return mirror, _mapped(prefix, mirror, uri)
        if mirror.fallback:
            return None
        raise NotFound(f"the mirror `{mirror.target}` can't have it: {problem}", address=str(uri), hint="allow the mirror's `fallback`")


@dataclass(frozen=True, slots=True)
class _Prefix:
    """A scheme and the first parts of what follows it."""

    scheme: str
    parts: tuple[str, ...]

    @classmethod
    def read(cls, text: str, key: str) -> _Prefix:
        match = _PREFIX.fullmatch(text)
        if match is None:
            raise BadConfig(f"a mirror's `{key}` is to be `SCHEME://`, or that and a path", got=redact_url(text))
        scheme = ALIASES.get(match["scheme"].lower(), match["scheme"].lower())
        if "@" in match["body"].partition("/")[0]:
            raise BadConfig(f"a mirror's `{key}` holds a user or password, or a revision", got=redact_url(text))
        parts = tuple(part for part in match["body"].split("/") if part)
        if parts and len(parts) >= _AUTHORITY_PARTS.get(scheme, 1):
            parts = _parts(_read_uri(f"{scheme}://{'/' if scheme == 'file' else ''}{'/'.join(parts)}", key))
        return cls(scheme, parts)

    def fits(self, uri: StorageUri) -> bool:
        return uri.scheme == self.scheme and _parts(uri)[: len(self.parts)] == self.parts


def _read_uri(text: str, key: str) -> StorageUri:
    try:
        uri = parse_uri(text)[0]
    except InvalidUri as error:
        raise BadConfig(f"a mirror's `{key}` can't be used: {error.message}", got=error.got, hint=error.hint) from None
    if uri.revision not in (None, _DEFAULT_REVISIONS.get(uri.scheme)):
        raise BadConfig(f"a mirror's `{key}` names a revision", got=text)
    return uri


def _parts(uri: StorageUri) -> tuple[str, ...]:
    """Authority and path, cut at slashes; percent-encoding undone where the scheme has it."""
    parts = [*uri.authority.split("/"), *uri.path.split("/")]
    return tuple(unquote(part) if uri.scheme in _ENCODED else part for part in parts if part)


def _not_mirrored(mirror: Mirror, uri: StorageUri) -> str | None:
    """Why the mirror can't have this URI's very version."""
    target = _Prefix.read(mirror.target, "to")
    if uri.query and target.scheme not in _ENCODED:
        return "it has parameters"
    takes_revisions = REVISION in mirror.target or target.scheme in _DEFAULT_REVISIONS
    if uri.revision not in (None, _DEFAULT_REVISIONS.get(uri.scheme)) and not takes_revisions:
        return "it names a revision, and the mirror's `to` has no `{revision}`"
    if any("/" in part for part in _parts(uri)):
        return "a part of its path holds a slash"
    return None


def _mapped(prefix: _Prefix, mirror: Mirror, uri: StorageUri) -> StorageUri:
    target = _Prefix.read(mirror.target, "to")
    rest = _parts(uri)[len(prefix.parts) :]
    in_name = max(0, 2 - len(prefix.parts)) if uri.scheme in _DEFAULT_REVISIONS else len(rest)
    name, inside = rest[:in_name], rest[in_name:]
    parts: list[str] = []
    for part in target.parts if any(NAME in part for part in target.parts) else (*target.parts, NAME):
        filled = part.replace(NAME, "/".join(name)).replace(REVISION, uri.revision or "")
        parts += [piece for piece in filled.split("/") if piece]
    parts += inside
    if target.scheme in _ENCODED:
        parts = [parts[0], *(quote(part, safe="") for part in parts[1:])]
    return _uri(target.scheme, parts, uri)


def _uri(scheme: str, parts: list[str], original: StorageUri) -> StorageUri:
    count = _AUTHORITY_PARTS.get(scheme, 1)
    revision = _DEFAULT_REVISIONS.get(scheme)
    if revision is not None and original.revision not in (None, _DEFAULT_REVISIONS.get(original.scheme)):
        revision = original.revision
    path = "/".join(parts[count:])
    query = original.query if scheme in _ENCODED else ""
    uri = replace(
        original,
        scheme=scheme,
        authority="/".join(parts[:count]),
        path=f"/{path}" if scheme == "file" else path,
        query=query,
        revision=revision,
    )
    try:
        return parse_uri(str(uri))[0]
    except InvalidUri as error:
        raise BadConfig(f"a mirror's `to` makes no URI of `{original}`: {error.message}", got=error.got, hint=error.hint) from None
