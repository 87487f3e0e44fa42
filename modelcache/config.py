"""Every setting, its default and its unit; the one place that reads the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from modelcache.abc.store import Limits, Route
from modelcache.errors import BadConfig
from modelcache.fetch.concurrency import ConcurrencyBounds
from modelcache.fetch.engine import EngineLimits
from modelcache.sources.http import HttpOptions
from modelcache.sources.retrying import RetryLimits
from modelcache.sources.s3 import S3Options
from modelcache.transport import Proxies, Timeouts
from modelcache.units import parse_bytes

NODE_ROOT = Path("/var/lib/modelcache")
T = TypeVar("T")

DEFAULT_LIMITS = Limits(max_bytes=None, high_watermark=0.90, low_watermark=0.80)
"""Of the whole file system, by anyone. kubelet evicts pods at 10 % free (nodefs.available) and collects images at 85 % used; on a node
that shares its file system the agent goes lower. On a laptop 10 % stay free."""
DEFAULT_ENGINE = EngineLimits(ConcurrencyBounds(start=4, least=1, most=16), spare_buffers=16)
"""16 + 16 chunks of 4 MiB bound the engine's memory to 128 MiB."""
DEFAULT_REFRESH_S = 600.0


@dataclass(frozen=True)
class Config:
    """Settings of one `ModelCache`. `load` reads them from the environment; every field can be given by name instead.

    Attributes:
        root: the store's directory.
        limits: how much the store may take.
        engine: how much the fetch engine may use.
        refresh_s: age at which a mutable ref is resolved again; 0: at each call.
        timeouts: of connections.
        retry: how long and how often a failing origin is asked again.
        write_route: None chooses by who reads next.
        s3, http: settings of the sources.
        proxies: of the bulk transport.
    """

    root: Path
    limits: Limits = DEFAULT_LIMITS
    engine: EngineLimits = DEFAULT_ENGINE
    refresh_s: float = DEFAULT_REFRESH_S
    timeouts: Timeouts = field(default_factory=Timeouts)
    retry: RetryLimits = field(default_factory=RetryLimits)
    write_route: Route | None = None
    s3: S3Options = field(default_factory=S3Options)
    http: HttpOptions = field(default_factory=HttpOptions)
    proxies: Proxies = field(default_factory=Proxies)

    def __post_init__(self) -> None:
        low, high = self.limits.low_watermark, self.limits.high_watermark
        if not 0 < low <= high <= 1:
            raise BadConfig(
                f"the low watermark ({low:g}) must not be over the high one ({high:g}), both shares between 0 and 1",
                got=f"{low:g}",
                hint="set MODELCACHE_LOW_WATERMARK and MODELCACHE_HIGH_WATERMARK together",
            )

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Config:
        """The settings from `environ` (by default the process's), with `overrides` by field name on top.

        Raises:
            BadConfig: a variable's value makes no sense; the message names the variable. Or no field has that name.
        """
        read = _Reader(os.environ if environ is None else environ)
        values: dict[str, Any] = {
            "root": read.value("MODELCACHE_ROOT", Path, _default_root(read.environ)),
            "limits": _limits(read),
            "engine": _engine(read),
            "refresh_s": read.value("MODELCACHE_REFRESH_S", _age, DEFAULT_REFRESH_S),
            "timeouts": _given(
                Timeouts(),
                connect_s=read.value("MODELCACHE_CONNECT_TIMEOUT_S", _timeout, None),
                stall_s=read.value("MODELCACHE_STALL_TIMEOUT_S", _timeout, None),
            ),
            "retry": _given(RetryLimits(), deadline_s=read.value("MODELCACHE_RETRY_DEADLINE_S", _seconds, None)),
            "write_route": read.value("MODELCACHE_WRITE_ROUTE", _route, None),
            "s3": _s3(read),
            "http": _given(HttpOptions(), ca_file=read.value("MODELCACHE_HTTP_CA_FILE", Path, None)),
            "proxies": _proxies(read.environ),
        }
        unknown = overrides.keys() - {item.name for item in fields(cls)}
        if unknown:
            raise BadConfig(f"no such setting: {', '.join(sorted(unknown))}")
        return cls(**(values | overrides))


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def value(self, name: str, read: Callable[[str], T], default: T | None) -> Any:
        """The variable, read; the default when it is absent or empty."""
        text = self.environ.get(name, "")
        if text == "":
            return default
        try:
            return read(text)
        except (ValueError, BadConfig) as error:
            hint = error.hint if isinstance(error, BadConfig) else None
            raise BadConfig(f"{name}: {error}", got=text, hint=hint) from error

    def first(self, *names: str) -> str | None:
        """The value of the first of these variables that is set and not empty."""
        name = self.first_name(*names)
        return None if name is None else self.environ[name]

    def first_name(self, *names: str) -> str | None:
        return next((name for name in names if self.environ.get(name)), None)


def _default_root(environ: Mapping[str, str]) -> Path:
    """The node's store where this user owns one, else the user's cache directory (XDG Base Directory)."""
    marker = NODE_ROOT / "format"
    try:
        if marker.stat().st_uid == os.getuid():
            return NODE_ROOT
    except OSError:
        pass  # no store of the node that this user can see
    home = Path(environ.get("HOME") or Path.home())
    named = Path(environ.get("XDG_CACHE_HOME") or "")
    return (named if named.is_absolute() else home / ".cache") / "modelcache"  # a relative one is to be ignored, says the specification


def _limits(read: _Reader) -> Limits:
    """A high watermark under the usual low one takes that down with it."""
    high = read.value("MODELCACHE_HIGH_WATERMARK", _share, DEFAULT_LIMITS.high_watermark)
    low = read.value("MODELCACHE_LOW_WATERMARK", _share, min(DEFAULT_LIMITS.low_watermark, high))
    return Limits(read.value("MODELCACHE_MAX_BYTES", parse_bytes, DEFAULT_LIMITS.max_bytes), high, low)


def _engine(read: _Reader) -> EngineLimits:
    most = read.value("MODELCACHE_REQUESTS", _count, DEFAULT_ENGINE.concurrency.most)
    bounds = DEFAULT_ENGINE.concurrency
    return EngineLimits(ConcurrencyBounds(min(bounds.start, most), min(bounds.least, most), most), DEFAULT_ENGINE.spare_buffers)


def _s3(read: _Reader) -> S3Options:
    """Our names first, then KServe's and the SDK's own (`kserve_storage.py`, AWS SDK reference)."""
    source = read.first_name("MODELCACHE_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT")
    endpoint = None if source is None else read.environ[source]
    if source == "S3_ENDPOINT" and endpoint is not None and "://" not in endpoint:
        endpoint = f"{'https' if read.value('S3_USE_HTTPS', _flag, True) else 'http'}://{endpoint}"
    ca_file = read.first("MODELCACHE_S3_CA_FILE", "AWS_CA_BUNDLE")
    path_style = read.value("MODELCACHE_S3_PATH_STYLE", _flag, None)
    virtual = read.value("S3_USER_VIRTUAL_BUCKET", _flag, None)
    if path_style is None and virtual:
        path_style = False  # KServe's `false` is its default: the SDK chooses
    anonymous = read.value("MODELCACHE_S3_ANONYMOUS", _flag, None)
    if anonymous is None:
        anonymous = read.value("awsAnonymousCredential", _flag, False)
    options = S3Options(
        region=read.first("MODELCACHE_S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"),
        profile=read.first("MODELCACHE_S3_PROFILE", "AWS_PROFILE"),
        anonymous=bool(anonymous),
        path_style=path_style,
        ca_file=None if ca_file is None else Path(ca_file),
    )
    try:
        return replace(options, endpoint=endpoint)
    except BadConfig as error:  # it shows no userinfo; the variable's value might hold one
        raise BadConfig(f"{source}: {error.message}", got=error.got, hint=error.hint) from None


def _proxies(environ: Mapping[str, str]) -> Proxies:
    """HTTP_PROXY, HTTPS_PROXY, NO_PROXY in either case, the lower one first, as curl and Python read them."""

    def named(name: str) -> str | None:
        if name == "http_proxy" and "REQUEST_METHOD" in environ:
            return environ.get(name)  # in a CGI program HTTP_PROXY is a header that the client sent (httpoxy)
        return environ.get(name) or environ.get(name.upper())

    return Proxies(http=named("http_proxy") or None, https=named("https_proxy") or None, no_proxy=named("no_proxy") or "")


def _given(defaults: T, **values: Any) -> T:
    """`defaults` (a dataclass) with the values that are not None."""
    return replace(defaults, **{name: value for name, value in values.items() if value is not None})  # type: ignore[type-var]


def _share(text: str) -> float:
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < value <= 1:
        raise BadConfig(f"`{text}` is not a share between 0 and 1", got=text)
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 10**9:
        raise BadConfig(f"`{text}` is not a number of seconds", got=text)
    return value


def _timeout(text: str) -> float:
    value = _seconds(text)
    if value >= 86_400:
        raise BadConfig(f"`{text}` seconds are a day or more, which is no timeout", got=text)
    return value


def _age(text: str) -> float:
    return 0.0 if float(text) == 0 else _seconds(text)


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 256:
        raise BadConfig(f"`{text}` is not a number from 1 to 256", got=text)
    return value


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise BadConfig(f"`{text}` is neither true nor false", got=text)


def _route(text: str) -> Route | None:
    if text == "auto":
        return None
    return Route(text)
