"""What each scheme's body says: the part of the grammar that differs from scheme to scheme. Used by `modelcache.uri` alone."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

DEFAULT_REVISIONS = {"hf": "main", "modelscope": "master", "oci": "latest"}
DEFAULT_PORTS = {"http": 80, "https": 443, "ftp": 21, "sftp": 22, "ssh": 22, "smb": 445}
"""Schemes whose authority is a host, with IANA's port."""
VERSION_PARAMETERS = {"s3": "versionId", "gs": "generation"}
"""How one version of one object is named, as s3fs and gcsfs write it."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_VERSION_ID = re.compile(r"[A-Za-z0-9._~+/=-]{1,1024}")
_REPO_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REPO = re.compile(r"(?P<owner>[^/]*)/(?P<model>[^/:@]*)(?:[:@](?P<revision>refs/pr/\d+|refs/convert/[\w-]+|[^/]*))?(?:/(?P<path>.*))?")
_BAD_REVISION = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|@\{|^[/.-]|[/.]$|\.lock$")
"""Source: git-check-ref-format."""
_CLAIM = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
"""RFC 1123 subdomain, the name of a Kubernetes object."""
_HOST = re.compile(r"[a-z0-9_][a-z0-9._-]{0,253}")
_AUTHORITY = re.compile(r"[^\s:@?#\\\[\]]*(?::\d{1,5})?|\[[0-9A-Fa-f:.]+\](?::\d{1,5})?")
_AT_PLACES = {
    "github": re.compile(r"[^\s:@]+:[^\s:@]+@[^\s:@]*"),
    "git": re.compile(r"[^\s@]*(?:@[^\s@]*)?"),
} | dict.fromkeys(("abfs", "abfss", "adl", "az", "wasb", "wasbs", "ocilake"), re.compile(r"(?:[^\s:@]+@)?[^\s:@]*(?::\d{1,5})?"))
"""Schemes in which what stands before the `@` is a part of the place: `container@account`, `org:repo@ref`."""
_OCI_NAME = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_OCI_PATH = re.compile(rf"{_OCI_NAME}(?:/{_OCI_NAME})*")
_OCI_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_OCI_DIGEST = re.compile(r"(?P<name>.*)@(?P<digest>sha256:[0-9a-f]{64})")
_ESCAPE = re.compile(r"%(?:([0-9A-Fa-f]{2})|.{0,2})")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PATH_SAFE = "/:@!$&'()*+,;=%"
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}")


class Fault(Exception):
    """What is wrong with which part. Never leaves the parser: the part may hold a secret.

    Attributes:
        shown: the part can't be a secret, though it does not occur in the redacted text.
    """

    def __init__(self, problem: str, part: str = "", *, hint: str | None = None, shown: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.part, self.hint, self.shown = problem, part, hint, shown


@dataclass(frozen=True, slots=True)
class Place:
    """What a scheme's own rule makes of the body: fields of a StorageUri, and the userinfo that stood in it."""

    authority: str
    path: str
    query: str = ""
    revision: str | None = None
    userinfo: str | None = None


def local_place(body: str, cwd: Path | None, *, is_uri: bool) -> Place:
    if is_uri and not body.startswith("/"):
        host, _, rest = body.partition("/")
        if host.lower() != "localhost":
            raise Fault("a `file` URI names an absolute path of this machine", host, hint="write `file:///absolute/path`, or a plain path")
        body = f"/{rest}"
    try:
        start = Path("/") if body.startswith("/") else cwd if cwd is not None else Path.cwd()
    except OSError:
        raise Fault("it is relative and the current directory is gone") from None
    if not start.is_absolute():
        raise ValueError(f"not an absolute directory: {start}")
    path = os.path.normpath(os.path.join(start, body))
    check_characters(path)
    return Place("", f"/{path.lstrip('/')}")


def check_characters(text: str) -> None:
    if _UNSAFE.search(text):
        raise Fault("it holds a control character or is not UTF-8")


def decoded(text: str) -> str:
    """Percent-decoded, strictly: malformed escapes, bytes that are not UTF-8 and control characters are refused."""
    _check_escapes(text)
    try:
        value = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise Fault("percent-encoded bytes are not UTF-8") from None
    check_characters(value)
    return value


def check_no_query(query: str) -> None:
    if query:
        name = query.partition("=")[0]
        hint = "if the `?` belongs to the name, end with another `?`"
        shown = "@" not in query and "=" in query and _PARAMETER.fullmatch(name) is not None
        raise Fault("it has parameters that its scheme doesn't know", name, hint=hint, shown=shown)


def _http(scheme: str, body: str, query: str) -> Place:
    authority, _, path = body.partition("/")
    host, userinfo = _userinfo(authority)
    segments: list[str] = []
    for segment in _encoded(path, _PATH_SAFE).split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment != ".":
            segments.append(segment)
    return Place(_host(scheme, host), "/".join(segments).rstrip("/"), _encoded(query, _PATH_SAFE + "?"), None, userinfo)


def _bucket(scheme: str, body: str, query: str) -> Place:
    authority, _, key = body.partition("/")
    bucket, userinfo = _userinfo(authority)
    if not _BUCKET.fullmatch(bucket):
        raise Fault("its bucket name is missing or not one", bucket, hint=f"write `{scheme}://BUCKET[/PREFIX]`")
    key = _plain_segments(key)
    if key.startswith("/"):
        raise Fault("an empty segment follows the bucket", f"{bucket}//", hint="write a single `/`")
    if not query:
        return Place(bucket, key, "", None, userinfo)
    name, _, version = query.partition("=")
    if name.lower() != VERSION_PARAMETERS[scheme].lower():
        check_no_query(query)
    if not key or not _VERSION_ID.fullmatch(version) or (scheme == "gs" and not version.isdigit()):
        raise Fault(f"`{VERSION_PARAMETERS[scheme]}` does not name a version of an object", name, shown=True)
    return Place(bucket, key, "", version, userinfo)


def _repository(scheme: str, body: str, query: str) -> Place:
    check_no_query(query)
    first, slash, rest = body.partition("/")
    owner, userinfo = _userinfo(first)
    match = _REPO.fullmatch(owner + slash + rest)
    hint = f"write `{scheme}://OWNER/MODEL[:REVISION][/SUBPATH]`"
    if match is None:
        raise Fault("it is not an owner and a model", owner + slash + rest, hint=hint)
    for name in (match["owner"], match["model"]):
        if not _REPO_NAME.fullmatch(name):
            raise Fault("its owner or model is not a name", name, hint=hint)
    if match["owner"] in ("datasets", "spaces"):
        raise Fault("it names no model repository", match["owner"], hint=hint)
    revision = decoded(match["revision"] or "") or DEFAULT_REVISIONS[scheme]
    if _BAD_REVISION.search(revision):
        raise Fault("its revision is not a branch, tag or commit", match["revision"], hint=hint)
    path = _plain_segments(match["path"] or "")
    if path and "" in path.split("/"):
        raise Fault("a segment of its path is empty", "//", hint=hint)
    return Place(f"{match['owner']}/{match['model']}", path, "", revision, userinfo)


def _claim(scheme: str, body: str, query: str) -> Place:
    check_no_query(query)
    claim, _, path = body.partition("/")
    if not _CLAIM.fullmatch(claim):
        raise Fault("it names no PersistentVolumeClaim", claim, hint="write `pvc://CLAIM[/PATH]`")
    return Place(claim, re.sub(r"/{2,}", "/", _plain_segments(path)).lstrip("/"))


def _oci(scheme: str, body: str, query: str) -> Place:
    """An image reference as `docker pull` reads it: names without a registry are Docker Hub's; a digest outranks a tag."""
    check_no_query(query)
    body, digest = body.rstrip("/"), ""
    if match := _OCI_DIGEST.fullmatch(body):
        body, digest = match["name"], match["digest"]
    first, slash, rest = body.partition("/")
    host, userinfo = _userinfo(first)
    if userinfo is None and not (slash and _is_registry(host)):
        host, rest = "docker.io", host + slash + rest
    host = _host("https", host)
    if not _is_registry(host):
        host = f"{host}:443"
    elif host == "index.docker.io":
        host = "docker.io"
    name, colon, tag = rest.partition(":")
    if host == "docker.io" and "/" not in name:
        name = f"library/{name}"
    if not _OCI_PATH.fullmatch(name) or (colon and not _OCI_TAG.fullmatch(tag)):
        raise Fault("it is not an image reference", rest, hint="write `oci://REGISTRY/REPOSITORY[:TAG][@sha256:HEX]`")
    return Place(host, name, "", digest or tag or DEFAULT_REVISIONS["oci"], userinfo)


def _is_registry(name: str) -> bool:
    return "." in name or ":" in name or name.lower() == "localhost"


def _hdfs(scheme: str, body: str, query: str) -> Place:
    """KServe reads the first part as a directory, fsspec as the name node: it is kept as written."""
    check_no_query(query)
    return _any_fsspec(scheme, body, "")


def _any_fsspec(scheme: str, body: str, query: str) -> Place:
    authority, _, path = body.partition("/")
    userinfo = None
    if scheme not in _AT_PLACES:
        authority, userinfo = _userinfo(authority)
    if not _AT_PLACES.get(scheme, _AUTHORITY).fullmatch(authority):
        raise Fault("what follows `//` is not a bucket or host", authority)
    if not authority and not path.strip("/"):
        raise Fault("it names nothing")
    if "::" in path:
        raise Fault("chained URLs (`::`) are reserved", "::")
    if scheme in DEFAULT_PORTS:
        authority = _host(scheme, authority)
    return Place(authority, _plain_segments(path), query, None, userinfo)


_RULES: dict[str, Callable[[str, str, str], Place]] = {
    "http": _http, "https": _http, "s3": _bucket, "gs": _bucket, "hf": _repository, "modelscope": _repository,
    "pvc": _claim, "oci": _oci, "hdfs": _hdfs, "webhdfs": _hdfs,
}  # fmt: skip
KNOWN_SCHEMES = frozenset(_RULES) | {"file"}
"""Schemes with a rule of their own; any other is read as fsspec's."""


def remote_place(scheme: str, body: str, query: str) -> Place:
    """Read what follows `scheme://`, without the fragment, the query and its signing parameters, which were cut off.

    Raises:
        Fault: by the scheme's rule it names no place.
    """
    return _RULES.get(scheme, _any_fsspec)(scheme, body, query)


def _check_escapes(text: str) -> None:
    bad = next((found.group() for found in _ESCAPE.finditer(text) if found.group(1) is None), None)
    if bad is not None:
        raise Fault("a `%` is not followed by two hex digits", bad, hint="write `%25` for a percent sign")


def _encoded(text: str, safe: str) -> str:
    """RFC 3986 §6.2.2: upper-case escapes, unreserved characters plain, everything not allowed encoded as UTF-8."""

    def normal(escape: re.Match[str]) -> str:
        char = chr(int(escape.group(1), 16))
        return char if char in _UNRESERVED else escape.group().upper()

    _check_escapes(text)
    return quote(_ESCAPE.sub(normal, text), safe=safe)


def _userinfo(authority: str) -> tuple[str, str | None]:
    userinfo, at, host = authority.rpartition("@")
    return host, userinfo if at else None


def _host(scheme: str, text: str) -> str:
    """`host[:port]` in lower case without the scheme's own port."""
    host, port = text.lower(), ""
    if match := re.fullmatch(r"(.*):([0-9]{0,5})", host):
        host, port = match.groups()
    if host.startswith("[") and host.endswith("]"):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            raise Fault("its host is no IPv6 address", text) from None
    elif not _HOST.fullmatch(host):
        ascii_form = "write an international name in its ASCII form, `xn--…`"
        raise Fault("its host is missing or not a name", text, hint=None if host.isascii() else ascii_form)
    if port and not 0 < int(port) < 65536:
        raise Fault("its port is out of range", port)
    return host if not port or int(port) == DEFAULT_PORTS.get(scheme) else f"{host}:{int(port)}"


def _plain_segments(path: str) -> str:
    """A path without its trailing slashes, if no segment of it is `.` or `..`."""
    path = path.rstrip("/")
    if bad := next((part for part in path.split("/") if part in (".", "..")), None):
        raise Fault("a segment of its path is a dot segment", bad)
    return path
