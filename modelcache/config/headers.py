"""Headers that are sent to one host and to no other, as the file, a variable and KServe's secrets write them."""

from __future__ import annotations

import re

from modelcache.config.kinds import MapOf, Scalar
from modelcache.config.setting import Environ
from modelcache.errors import BadConfig, InvalidUri
from modelcache.sources.http import expect_settable
from modelcache.transport import Target

KSERVES_SUFFIX = "-headers"
"""A secret with `https-host` and `headers` becomes the variable `HOST-headers` that holds JSON. Source: KServe, `https_secret.go`."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")


def _header_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise BadConfig(f"not a header name: {name[:80]!a}")
    expect_settable(name)


def _header_value(text: str) -> str:
    if not _VALUE.fullmatch(text):
        raise BadConfig("a control or non-ASCII character")
    return text


def expect_host(name: str) -> None:
    """Raises BadConfig: it is neither `host` nor `host:port`."""
    try:
        usable = Target.parse(f"https://{name}/").host_header.lower() in (name.lower(), name.lower().removesuffix(":443"))
    except InvalidUri:
        usable = False
    if not usable:
        raise BadConfig(f"`{name}` is neither a host nor `host:port`", got=name)


HEADERS = MapOf(MapOf(Scalar("a header's value", _header_value, secret=True), "<name>", _header_name), "<host>", expect_host)
"""`host` or `host:port` → headers."""


def kserves_headers(environ: Environ) -> dict[str, dict[str, str]] | None:
    """By host, what KServe's variables say; None if there is none. Raises BadConfig."""
    written = {name.removesuffix(KSERVES_SUFFIX): text for name, text in environ.items() if name.endswith(KSERVES_SUFFIX) and text}
    found = {}
    for host, text in written.items():
        try:
            expect_host(host)
            found[host] = HEADERS.kind.of_text(text)
        except BadConfig as error:
            raise BadConfig(f"{host}{KSERVES_SUFFIX}: {error.message}", hint=error.hint) from None
    return found or None
