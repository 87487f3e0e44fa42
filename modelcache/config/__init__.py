"""Every setting, its default and its unit; the one place that reads the environment and the configuration file.

`table` holds the settings, one entry each; `kinds` and `scalars` what a value can be; `file` reads the TOML; `resolving` finds the
place that counts; here they become a `Config`.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from modelcache.abc.grants import Trust
from modelcache.abc.ingest import Route
from modelcache.abc.store import Limits
from modelcache.config.aws import with_plain_sight
from modelcache.config.file import ConfigFile, find_file
from modelcache.config.resolving import Flag, Resolved, expect_private, resolve
from modelcache.config.setting import Environ
from modelcache.config.table import DEFAULT_LOW_WATERMARK, SETTINGS
from modelcache.errors import BadConfig
from modelcache.fetch.concurrency import ConcurrencyBounds
from modelcache.fetch.engine import EngineLimits
from modelcache.loader.options import DEFAULT_OPTIONS, DeviceOptions
from modelcache.mirrors import Mirror
from modelcache.sources.any_fsspec import FsspecOptions
from modelcache.sources.archive import DEFAULT_LIMITS as DEFAULT_ARCHIVE_LIMITS
from modelcache.sources.archive import ArchiveLimits
from modelcache.sources.claims import ClaimMounts
from modelcache.sources.gcs import GcsOptions
from modelcache.sources.http import HttpOptions
from modelcache.sources.huggingface import HubOptions
from modelcache.sources.retrying import RetryLimits
from modelcache.sources.s3 import S3Options
from modelcache.sources.throttled import RateLimits
from modelcache.transport import Proxies, Timeouts

__all__ = ["AGENT_SOCKET", "DEFAULT_ENGINE", "DEFAULT_LIMITS", "DEFAULT_REFRESH_S", "NODE_ROOT", "Config", "Flag", "Resolved", "Settings"]

NODE_ROOT = Path("/var/lib/modelcache")
AGENT_SOCKET = Path("/run/modelcache/agent.sock")

DEFAULT_LIMITS = Limits(max_bytes=None, high_watermark=0.90, low_watermark=DEFAULT_LOW_WATERMARK)
"""Of the whole file system, by anyone. kubelet evicts pods at 10 % free (nodefs.available) and collects images at 85 % used; on a node
that shares its file system the agent goes lower. On a laptop 10 % stay free."""
DEFAULT_ENGINE = EngineLimits(ConcurrencyBounds(start=4, least=1, most=16), spare_buffers=16)
"""16 + 16 chunks of 4 MiB bound the engine's memory to 128 MiB."""
DEFAULT_REFRESH_S = 600.0
DEFAULT_TRUST = Trust(
    grant_ttl_s=86_400.0,
    origins=("https://huggingface.co:443",),
    proof_requests=8,
    refused_networks=("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "100.100.100.200/32"),
)
"""The Hub names its large files by sha256 and lets nobody else say what they are (`docs/semantics.md`, Permission). Refused: link-local
addresses (RFC 3927, RFC 4291), where clouds give out a machine's credentials, and those of Amazon's over IPv6 and of Alibaba Cloud's
services for that."""


@dataclass(frozen=True)
class Config:
    """Settings of one `ModelCache`. `load` reads them from where they are written; every field can be given by name instead.

    Attributes:
        root: the store's directory.
        create: a new or empty directory becomes a store; False where a missing store means a disk that is not mounted.
        allow_fuse: a FUSE file system below the root is this machine's alone.
        limits: how much the store may take.
        engine: how much the fetch engine may use.
        refresh_s: age at which a mutable ref is resolved again; 0: at each call.
        timeouts: of connections.
        retry: how long and how often a failing origin is asked again.
        rates: bytes a second that may be taken from origins.
        write_route: None chooses by who reads next.
        s3, gs, http, hf, fsspec, pvc: settings of the sources.
        mirrors: prefixes of URIs that come from elsewhere.
        archive: how much one may unpack to.
        gpu: of loads to GPUs.
        proxies: of the bulk transport.
        trust: what callers of a shared store are believed.
        agent_socket: the node's agent, for the command line; None: no agent is asked.
    """

    root: Path
    create: bool = True
    allow_fuse: bool = False
    limits: Limits = DEFAULT_LIMITS
    engine: EngineLimits = DEFAULT_ENGINE
    refresh_s: float = DEFAULT_REFRESH_S
    timeouts: Timeouts = field(default_factory=Timeouts)
    retry: RetryLimits = field(default_factory=RetryLimits)
    rates: RateLimits = field(default_factory=RateLimits)
    write_route: Route | None = None
    s3: S3Options = field(default_factory=S3Options)
    gs: GcsOptions = field(default_factory=GcsOptions)
    http: HttpOptions = field(default_factory=HttpOptions)
    hf: HubOptions = field(default_factory=HubOptions)
    fsspec: FsspecOptions = field(default_factory=FsspecOptions)
    pvc: ClaimMounts = field(default_factory=ClaimMounts)
    mirrors: tuple[Mirror, ...] = ()
    archive: ArchiveLimits = DEFAULT_ARCHIVE_LIMITS
    gpu: DeviceOptions = DEFAULT_OPTIONS
    proxies: Proxies = field(default_factory=Proxies)
    trust: Trust = DEFAULT_TRUST
    agent_socket: Path | None = AGENT_SOCKET

    def __post_init__(self) -> None:
        low, high = self.limits.low_watermark, self.limits.high_watermark
        if not 0 < low <= high <= 1:
            raise BadConfig(
                f"the low watermark ({low:g}) must not be over the high one ({high:g}), both shares between 0 and 1",
                got=f"{low:g}",
                hint="set `low_watermark` and `high_watermark` (MODELCACHE_LOW_WATERMARK, MODELCACHE_HIGH_WATERMARK) together",
            )

    @classmethod
    def load(
        cls,
        environ: Environ | None = None,
        *,
        file: Path | None = None,
        flags: Mapping[str, Flag] | None = None,
        **overrides: Any,
    ) -> Config:
        """The settings. What is written in several places counts from the first: `overrides`, `flags`, the environment, the
        file, the defaults.

        Args:
            environ: by default the process's variables.
            file: the configuration file; by default the one of `MODELCACHE_CONFIG`, else the user's, else the machine's
                (docs/operations.md).
            flags: options of the command line, by key.
            overrides: whole fields of `Config`.

        Raises:
            BadConfig: a value makes no sense; the message names the place. Or no field has that name.
        """
        unknown = overrides.keys() - {item.name for item in fields(cls)}
        if unknown:
            raise BadConfig(f"no such setting: {', '.join(sorted(unknown))}")
        return replace(Settings.read(environ, file=file, flags=flags).config(), **overrides)


@dataclass(frozen=True)
class Settings:
    """The value of every setting with the place that it came from.

    Attributes:
        file: the configuration file that was read, if there is one.
        environ: that the values were read from.
    """

    values: Sequence[Resolved]
    file: Path | None
    environ: Environ = field(repr=False)

    @classmethod
    def read(cls, environ: Environ | None = None, *, file: Path | None = None, flags: Mapping[str, Flag] | None = None) -> Settings:
        """As `Config.load`."""
        variables = os.environ if environ is None else environ
        path = find_file(variables, file)
        opened = None if path is None else ConfigFile.read(path, [one.key for one in SETTINGS])
        found = resolve(SETTINGS, _machine_defaults(variables), variables, opened, flags or {})
        if opened is not None:
            expect_private(opened, found)
        return cls(found, path, variables)

    def config(self) -> Config:
        """Raises BadConfig: values that contradict each other."""
        tree: dict[str, Any] = {}
        for one in self.values:
            *parents, name = one.setting.field.split(".")
            inner = tree
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[name] = one.value
        config = Config(**{name: _filled(_DEFAULTS.get(name), value) for name, value in tree.items()})
        return replace(config, s3=with_plain_sight(config.s3, self.environ))


def _filled(default: Any, values: Any) -> Any:
    """`default` (a dataclass) with these values in place of its own."""
    if not isinstance(values, dict) or not is_dataclass(default):
        return values
    made = {name: _filled(getattr(default, name), value) for name, value in values.items()}
    if isinstance(default, ConcurrencyBounds):
        made |= {"start": min(default.start, made["most"]), "least": min(default.least, made["most"])}
    return replace(default, **made)  # type: ignore[type-var]  # is_dataclass says so of classes, too


def _machine_defaults(environ: Environ) -> Config:
    return Config(root=_default_root(environ), agent_socket=AGENT_SOCKET, hf=HubOptions(token_file=_default_token_file(environ)))


def _default_token_file(environ: Environ) -> Path | None:
    """Where huggingface_hub keeps its token (`constants.py`, HF_HOME); None: this process has no home."""
    home = environ.get("HOME")
    cache = environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else None)
    return None if cache is None else Path(cache) / "huggingface" / "token"


def _default_root(environ: Environ) -> Path:
    """The node's store where this user owns one, else the user's cache directory (XDG Base Directory)."""
    marker = NODE_ROOT / "format"
    try:
        if marker.stat().st_uid == os.getuid():
            return NODE_ROOT
    except OSError:
        pass  # no store of the node that this user can see
    try:
        home = Path(environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return NODE_ROOT  # a user id that no table of users has; where it may not write there, the error says how to name a root
    named = Path(environ.get("XDG_CACHE_HOME") or "")
    return (named if named.is_absolute() else home / ".cache") / "modelcache"  # a relative one is to be ignored, says the specification


_DEFAULTS = vars(Config(root=NODE_ROOT))
