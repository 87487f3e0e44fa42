"""What must never be shown of a URI: userinfo and signing parameters; how they leave it, and how a text is made safe to show."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_plus

SIGNING_PREFIXES = ("x-amz-", "x-goog-", "x-oss-", "x-obs-", "x-cos-", "q-sign-")
"""Beginnings of the parameter names of AWS SigV4, Google V4, Alibaba, Huawei and Tencent signatures; lower case."""

SIGNING_NAMES = frozenset({
    "signature", "sign", "sig", "expires", "policy", "key-pair-id", "awsaccesskeyid", "googleaccessid", "ossaccesskeyid", "accesskeyid",
    "q-ak", "q-key-time", "q-header-list", "q-url-param-list", "q-signature", "security-token", "security_token",
    "session_token", "sessiontoken",
    "token", "access_token", "auth_token", "id_token", "refresh_token", "private_token", "private-token", "job_token", "delegation",
    "jwt", "sas",
    "auth", "authorization", "credential", "credentials", "api_key", "api-key", "apikey", "access_key", "access-key", "accesskey",
    "secret", "client_secret", "secret_key", "password", "passwd", "pwd", "hdnea", "hdnts", "hdntl",
})  # fmt: skip
"""Names that are always a credential or a part of a signature; lower case. `key` is not here: it often names the object."""

SAS_NAMES = frozenset({
    "se", "sp", "sv", "sr", "st", "spr", "skoid", "sktid", "ske", "sks", "skv", "skt", "sip",
    "si", "ss", "srt", "sdd", "saoid", "suoid", "scid", "ses", "sduoid", "skdutid",
})  # fmt: skip
"""Azure's shared access signature; these short names count only beside `sig`. Source: Azure Storage, service and user delegation SAS."""

_HEAD = re.compile(r"[^?#@]*?//")
_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*://)")
_NOT_A_PORT = re.compile(r":(?!\d*$)")


@dataclass(frozen=True, slots=True, repr=False)
class UriSecrets:
    """The credential that a URI carried, in memory only; true if there is any.

    Attributes:
        userinfo: what stood before the `@`, as written (percent-encoding kept).
        query: the signing parameters that were taken out, as written, `k=v&…`; empty if there were none.
    """

    userinfo: str | None = None
    query: str = ""

    def __bool__(self) -> bool:
        return self.userinfo is not None or self.query != ""

    def __repr__(self) -> str:
        return f"UriSecrets({'hidden' if self else 'none'})"


def split_signing(query: str) -> tuple[str, str]:
    """The parameters of a query that are no secret, and those that are; each in its order, empty ones dropped."""
    pairs = [pair for pair in query.split("&") if pair]
    names = [unquote_plus(pair.partition("=")[0]).strip().lower() for pair in pairs]
    secret = [name in SIGNING_NAMES or name.startswith(SIGNING_PREFIXES) or ("sig" in names and name in SAS_NAMES) for name in names]
    kept = [pair for pair, hide in zip(pairs, secret, strict=True) if not hide]
    hidden = [pair for pair, hide in zip(pairs, secret, strict=True) if hide]
    return "&".join(kept), "&".join(hidden)


def redact_url(text: str) -> str:
    """A URL or URI without userinfo, query and fragment, for logs and errors. Takes any text and never raises.

    Userinfo is found as RFC 3986 writes it, and also where a raw `/`, `?` or `#` stands in a password after `user:`.
    Characters that don't print are replaced.
    """
    shown = "::".join(_redact_link(link) for link in _CHAIN.split(text))
    if shown.isprintable():
        return shown
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in shown)


def _redact_link(text: str) -> str:
    head = _HEAD.match(text)
    at = head.end() if head else 0
    rest = text[at:]
    if "@" in (authority := _authority(rest)):
        rest = rest[authority.rindex("@") + 1 :]
    if "@" in rest and not rest.startswith("[") and _NOT_A_PORT.search(_authority(rest)):
        rest = rest[rest.rindex("@") + 1 :]
    return text[:at] + re.split(r"[?#]", rest, maxsplit=1)[0]


def _authority(rest: str) -> str:
    return re.split(r"[/?#]", rest, maxsplit=1)[0]
