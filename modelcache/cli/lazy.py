"""What the command line imports late, and the only place where it does, but for the executable's own start (`modelcache.__main__`).

The floors below take longer to import (tens of milliseconds) than `--help` may take, and only terminals need rich. So
commands name them in annotations alone and get them here, inside the call that needs them. Everywhere else in modelcache
an import inside a function is an optional third-party package.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from modelcache.errors import InvalidUri, NotInstalled

if TYPE_CHECKING:
    from modelcache.agent.remote import RemoteCache
    from modelcache.cache import ModelCache, Refresh
    from modelcache.cli.findings import Finding
    from modelcache.cli.many_view import ManyView
    from modelcache.cli.output import Output
    from modelcache.cli.progress_view import ProgressView
    from modelcache.config import Config, Settings
    from modelcache.inspecting import Inspected
    from modelcache.loader.report import LoadReport
    from modelcache.patience import Cancellation
    from modelcache.sources.throttled import RateLimits
    from modelcache.uri import StorageUri, UriSecrets


def read_settings(environ: Mapping[str, str], file: Path | None, flags: Mapping[str, tuple[str, object]]) -> Settings:
    """`Settings.read`; `flags` are by key the name and value of an option. Raises BadConfig."""
    from modelcache.config import Flag, Settings

    return Settings.read(environ, file=file, flags={key: Flag(name, value) for key, (name, value) in flags.items()})


def cache_of(config: Config) -> ModelCache:
    """An open `ModelCache`. Raises StoreError."""
    from modelcache.cache import ModelCache

    return ModelCache(config=config)


def remote_cache(socket: Path) -> RemoteCache:
    """The agent at a socket. Raises AgentUnreachable, NotInstalled."""
    try:
        from modelcache.agent.remote import RemoteCache
    except ImportError as error:
        raise NotInstalled.needed_for("an agent takes", error, "modelcache[agent]") from None
    return RemoteCache(socket.absolute())


def reached(settings: Settings, output: Output, fetches_with: Mapping[str, str], schemes: Collection[str]) -> RemoteCache | None:
    """The agent that a command asks, if it asks one. Raises AgentUnreachable, BadConfig, NotInstalled."""
    from modelcache.cli.reaching import reached

    return reached(settings, output, fetches_with, schemes)


def named_agent(settings: Settings) -> RemoteCache:
    """The agent at the socket of the settings, whatever it keeps. Raises AgentUnreachable, BadConfig."""
    from modelcache.cli.reaching import at_socket

    return at_socket(settings)


def rate_limits(total: int | None, of: Mapping[str, int | None]) -> RateLimits:
    """Bounds on what an agent takes from origins; hosts whose rate is None have none."""
    from modelcache.sources.throttled import RateLimits

    return RateLimits(total, {host: rate for host, rate in of.items() if rate is not None})


def top_screen(output: Output, draw: Callable[[int, int], Sequence[str]], interval_s: float) -> None:
    """Draw again and again, on a terminal, by rich. Ends by KeyboardInterrupt."""
    from modelcache.cli.top_screen import redraw

    redraw(output, draw, interval_s)


def refresh_of(word: str) -> Refresh:
    """`Refresh(word)`."""
    from modelcache.cache import Refresh

    return Refresh(word)


def read_uri(text: str) -> tuple[StorageUri, UriSecrets]:
    """`parse_uri`. Raises InvalidUri."""
    from modelcache.uri import parse_uri

    return parse_uri(text)


def schemes_of(texts: Iterable[str]) -> set[str]:
    """Of those that are storage URIs."""
    found = set()
    for text in texts:
        with suppress(InvalidUri):
            found.add(read_uri(text)[0].scheme)
    return found


def redact_url(text: str) -> str:
    """`modelcache.uri.redact_url`."""
    from modelcache.uri_secrets import redact_url

    return redact_url(text)


def bars(output: Output) -> ProgressView:
    """Progress on a terminal, by rich."""
    from modelcache.cli.screen import BarView

    return BarView(output)


def many_bars(output: Output, pieces: int) -> ManyView:
    """Progress of several pieces of work on a terminal, by rich."""
    from modelcache.cli.many_screen import ManyBars

    return ManyBars(output, pieces)


def inspect(cache: ModelCache, name: str, cancel: Cancellation) -> Inspected:
    """`modelcache.inspecting.inspect`."""
    from modelcache.inspecting import inspect

    return inspect(cache, name, cancel=cancel)


def load(
    source: str, cache: ModelCache | None, device: str | None, cancel: Cancellation, progress: Callable[[int, int], None]
) -> LoadReport:
    """Load every tensor and drop it; what it took. Raises as `modelcache.load`."""
    from modelcache.loading import timed_load

    return timed_load(source, device=device, cache=cache, cancel=cancel, progress=progress)


def read_list(lines: Iterable[str]) -> Sequence[str]:
    """`modelcache.prewarm.read_list`."""
    from modelcache.prewarm import read_list

    return read_list(lines)


def check_settings(environ: Mapping[str, str], settings: Settings) -> Sequence[Finding]:
    """What `doctor` finds about where settings come from."""
    from modelcache.cli.settings_checks import check_settings

    return check_settings(environ, settings)


def check_agent(settings: Settings) -> Sequence[Finding]:
    """What `doctor` finds about the node's agent."""
    from modelcache.cli.agent_checks import check_agent

    return check_agent(settings)


def examine(environ: Mapping[str, str], config: Config) -> Sequence[Finding]:
    """What `doctor` finds."""
    from modelcache.cli.examination import examine

    return examine(environ, config)


def write_bundle(path: Path, settings: Settings | None, findings: Sequence[Finding], environ: Mapping[str, str]) -> int:
    """What `doctor --bundle` writes; its size in bytes. Raises BadConfig: it can't be written there."""
    from modelcache.cli.bundle import Gathered, write_bundle

    return write_bundle(path.expanduser().absolute(), Gathered(findings, settings, environ))
