"""Storage URIs: one grammar, one canonical form. `docs/uris.md` is the same as a table.

A URI is `scheme://body[?query][#fragment]`, or a path of this machine. The fragment is ours and never sent:
`#include=PATTERN&exclude=PATTERN&sha256=HEX&unpack=false`. Only `http(s)` is percent-encoded; everywhere else a name stands as it is,
which is how KServe, fsspec and the stores' own tools read it, and there the *last* `#` (and `?`, where the scheme
has parameters) separates. A name that has such a character itself ends with an empty one: `s3://b/a#b#`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import quote

from modelcache.digest import Digest, sha256
from modelcache.errors import InvalidUri
from modelcache.uri_places import KNOWN_SCHEMES, VERSION_PARAMETERS, Fault, check_characters, decoded, local_place, remote_place
from modelcache.uri_secrets import UriSecrets, redact_url, split_signing

__all__ = ["StorageUri", "UriSecrets", "parse_uri", "redact_url"]

ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "oci+native": "oci", "oci+fetch": "oci", "local": "file"}
"""Other spellings of a scheme: Hadoop's of S3, gcsfs' of Google, KServe's delivery modes of OCI, fsspec's of a file."""

PATTERN_HINT = "patterns select files of one place, behind its `#`: `#include=*.json`"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CHAINED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*::|.*::[A-Za-z][A-Za-z0-9+.-]*://")
_FRAGMENT_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_PATTERN_SAFE = "/:@!$'()*+,;=?[]"
_REVISION_SAFE = "@!$&,;=+"


@dataclass(frozen=True, slots=True)
class StorageUri:
    """A place that holds a model, in canonical form; equal places are equal values and print alike. Holds no secret.

    `str(uri)` is the canonical text, which `parse_uri` reads back as an equal value. Values come from `parse_uri`; nothing
    is checked here.

    Attributes:
        scheme: lower case, `file`, `http`, `https`, `s3`, `gs`, `hf`, `pvc`, … or any fsspec scheme.
        authority: bucket, `host[:port]`, claim, `owner/model` of `hf` and `modelscope`; empty for `file`. No userinfo.
        path: what follows, without leading or trailing slash: as it is; of `http(s)` percent-encoded, as the server sees
            it; of `file` absolute, with the leading slash; of `oci` the repository.
        query: of `http(s)` and fsspec schemes what is left once signing parameters are out; else empty.
        revision: commit, tag, branch (`hf`, default `main`), OCI tag or digest, version id of a single object; None where
            the scheme has none or none was given.
        include, exclude: patterns over relative paths, sorted, fnmatch syntax as KServe's STORAGE_ALLOW_PATTERNS.
        digest: expected sha256 of a single file.
        unpack: whether a place that is a single archive stands for what is in it.
    """

    scheme: str
    authority: str
    path: str
    query: str = ""
    revision: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    digest: Digest | None = None
    unpack: bool = True

    def __str__(self) -> str:
        body = f"{self.scheme}://{self.authority}"
        if self.scheme in ("hf", "modelscope"):
            body += f":{quote(self.revision or '', safe=_REVISION_SAFE)}"
        if self.path:
            body += self.path if self.scheme == "file" else f"/{self.path}"
        if self.scheme == "oci":
            body += f"{'@' if ':' in (self.revision or '') else ':'}{self.revision}"
        elif self.scheme in VERSION_PARAMETERS and self.revision is not None:
            body += f"?{VERSION_PARAMETERS[self.scheme]}={self.revision}"
        elif self.query:
            body += f"?{self.query}"
        elif "?" in self.path and self.scheme != "file":
            body += "?"
        fragment = self._fragment()
        return f"{body}#{fragment}" if fragment or "#" in body or body != body.strip() else body

    def _fragment(self) -> str:
        pairs = [f"include={quote(pattern, safe=_PATTERN_SAFE)}" for pattern in self.include]
        pairs += [f"exclude={quote(pattern, safe=_PATTERN_SAFE)}" for pattern in self.exclude]
        if self.digest is not None:
            pairs.append(f"sha256={self.digest.hex}")
        if not self.unpack:
            pairs.append("unpack=false")
        return "&".join(pairs)

    def selects(self, path: str) -> bool:
        """Whether the patterns let a file in: it matches any `include` (or there is none) and no `exclude`.

        `path` is relative to what the URI names; `*` and `?` also match `/`.
        """
        if self.include and not any(fnmatchcase(path, pattern) for pattern in self.include):
            return False
        return not any(fnmatchcase(path, pattern) for pattern in self.exclude)


def parse_uri(text: str, *, cwd: Path | None = None) -> tuple[StorageUri, UriSecrets]:
    """Read a storage URI or a path of this machine; secrets leave it and come back beside it.

    Args:
        cwd: the absolute directory that a relative path starts from; None: this process's.

    Raises:
        InvalidUri: not a URI of this grammar; `got` is the bad part, unless it could show a secret.
    """
    text = os.fspath(text)  # who has no types gives a Path; what is neither is a TypeError that says so
    try:
        return _parse(text, cwd)
    except Fault as error:
        fault = error
    # Raised out here so that the Fault, which may hold a secret, is not its context.
    address = redact_url(text)
    part = fault.part[:80] if fault.part and (fault.shown or fault.part in address) else None
    said = f"{fault.problem}: `{part}`" if part else fault.problem
    hint = "; ".join(each for each in (fault.hint, PATTERN_HINT if part and "*" in part else None) if each) or None
    raise InvalidUri(f"not a storage URI ({said})", address=address, got=part, hint=hint)


def _parse(text: str, cwd: Path | None) -> tuple[StorageUri, UriSecrets]:
    _check_text(text)
    match = _SCHEME.match(text)
    scheme = match.group(1).lower() if match else "file"
    scheme = ALIASES.get(scheme, scheme)
    is_http = scheme in ("http", "https")
    body, fragment = _cut(text[match.end() :] if match else _plain_path(text), "#", first=is_http)
    if scheme == "file":
        place, signing = local_place(body, cwd, is_uri=match is not None), ""
    else:
        body, query = _cut(body, "?", first=is_http or scheme not in KNOWN_SCHEMES)
        query, signing = split_signing(query)
        if scheme == "gs" and not query and re.fullmatch("[0-9]+", fragment):
            query, fragment = f"generation={fragment}", ""
        place = remote_place(scheme, body, query)
    fragment, unpack = _unpack(fragment)
    include, exclude, digest = _selection(fragment)
    uri = StorageUri(scheme, place.authority, place.path, place.query, place.revision, include, exclude, digest, unpack)
    return uri, UriSecrets(place.userinfo, signing)


def _check_text(text: str) -> None:
    if not text.strip():
        raise Fault("it is empty", hint="name a model, as `hf://owner/model`, or a path of this machine")
    if text != text.strip():
        raise Fault("it has white space at an end", hint="remove that; a name that does end so is written with a `#` behind it")
    check_characters(text)
    if _CHAINED.match(text):
        raise Fault("chained URLs (`::`) are reserved", "::", hint="name the file itself; for a local name write `./` before it")


def _plain_path(text: str) -> str:
    name, colon, rest = text.partition(":")
    scheme = ALIASES.get(name.lower(), name.lower())
    if colon and scheme == "file" and rest.startswith("/"):
        return rest
    if colon and (scheme in KNOWN_SCHEMES or (rest.startswith("/") and _SCHEME.match(f"{name}://"))):
        raise Fault("its scheme lacks the `//`", f"{name}:", hint=f"write `{scheme}://…`, or `./{name}:…` for a local file")
    return text


def _cut(text: str, mark: str, *, first: bool) -> tuple[str, str]:
    """What stands before and after the first or last `mark`; all of it and nothing if there is none."""
    at = text.find(mark) if first else text.rfind(mark)
    return (text, "") if at < 0 else (text[:at], text[at + 1 :])


def _unpack(fragment: str) -> tuple[str, bool]:
    """The fragment without its `unpack`, and what that says."""
    pairs = fragment.split("&")
    said = {pair for pair in pairs if pair.startswith("unpack=")}
    if not said <= {"unpack=true"} and said != {"unpack=false"}:
        raise Fault("`unpack` is to be true or false", min(said - {"unpack=true"}), shown="@" not in fragment)
    return "&".join(pair for pair in pairs if pair not in said), said != {"unpack=false"}


def _selection(fragment: str) -> tuple[tuple[str, ...], tuple[str, ...], Digest | None]:
    """Patterns and digest of a fragment. `*` includes everything, which is the same as no pattern; `dir/` means `dir/*`."""
    patterns: dict[str, set[str]] = {"include": set(), "exclude": set()}
    digest: Digest | None = None
    safe = "@" not in fragment
    for pair in fragment.split("&") if fragment else ():
        key, equals, value = pair.partition("=")
        if key not in ("include", "exclude", "sha256") or not equals:
            raise Fault(
                "its fragment has an unknown key",
                key,
                hint="known are include=, exclude=, sha256= and unpack=; if the `#` belongs to the name, end with another `#`",
                shown=safe and equals == "=" and _FRAGMENT_KEY.fullmatch(key) is not None,
            )
        value = decoded(value)
        if not value:
            raise Fault("it has no value", key, shown=True)
        if key != "sha256":
            patterns[key].add(value + "*" if value.endswith("/") else value)
        elif digest is not None or not _SHA256.fullmatch(value):
            raise Fault("`sha256` is to be given once, as 64 hex digits", value, shown=safe)
        else:
            digest = sha256(value.lower())
    include = () if "*" in patterns["include"] else tuple(sorted(patterns["include"]))
    return include, tuple(sorted(patterns["exclude"])), digest
