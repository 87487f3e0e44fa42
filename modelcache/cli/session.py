"""One run of one command: its options, its output, and the only ways to a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from modelcache.cli import lazy
from modelcache.cli.options import CommonOptions, OriginOptions
from modelcache.cli.output import Output, Style, streams
from modelcache.errors import NotCached

if TYPE_CHECKING:
    from modelcache.cache import ModelCache
    from modelcache.cli.caches import Cache
    from modelcache.config import Config, Settings


@dataclass
class Session:
    """What every command gets.

    Attributes:
        environ: the process's variables, for `Config` and for redaction.
        result: what was done so far, in the keys of the command's document; shown beside the error if the command fails.
    """

    options: CommonOptions
    environ: Mapping[str, str] = field(repr=False)
    output: Output = field(repr=False)
    result: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, options: CommonOptions, environ: Mapping[str, str]) -> Session:
        """A session that speaks to this process's stdout and stderr."""
        out, err = streams()
        style = Style(
            as_json=options.as_json,
            quiet=options.quiet,
            verbose=options.verbose,
            color=not options.no_color and not environ.get("NO_COLOR"),
            draws=environ.get("TERM") != "dumb",
        )
        return cls(options, environ, Output(style, out=out, err=err))

    def config(self, origin: OriginOptions | None = None, *, max_bytes: str | None = None) -> Config:
        """Settings from the configuration file and the environment, with the options on top.

        Raises:
            BadConfig: a value that makes no sense; the message names its place.
        """
        return self.settings(origin, max_bytes=max_bytes).config()

    def settings(self, origin: OriginOptions | None = None, *, max_bytes: str | None = None) -> Settings:
        """The same, each with the place that it came from. Raises BadConfig."""
        given: dict[str, tuple[str, object]] = {
            "store.root": ("--root", None if self.options.root is None else _absolute(self.options.root)),
            "store.max_bytes": ("--max-bytes", max_bytes),
            "agent.socket": ("--agent", self.options.agent),
            **({} if origin is None else _given(origin)),
        }
        file = None if self.options.config is None else _absolute(self.options.config)
        return lazy.read_settings(self.environ, file, {key: flag for key, flag in given.items() if flag[1] is not None})

    def has_store(self) -> bool:
        """Whether there is something at the root that `open_store` would open, or refuse, instead of making a store. Raises BadConfig."""
        root = self.config().root
        try:
            return any(root.iterdir())
        except FileNotFoundError:
            return False
        except OSError:
            return True  # it can't be looked into: opening it says why

    def expect_store(self) -> None:
        """For commands that only look: don't make a store just to find it empty.

        Raises:
            NotCached: there is no store at the root.
        """
        if not self.has_store():
            root = str(self.config().root)
            hint = "`modelcache pull URI` makes one; --root or MODELCACHE_ROOT names another"
            raise NotCached(f"there is no store at `{root}`", address=root, hint=hint)

    @contextmanager
    def open_cache(self, settings: Settings | None = None, *, fetches: Sequence[str] = (), looks: bool = False) -> Iterator[Cache]:
        """What this run asks, closed at the end of the block: the node's agent where there is one (docs/cli.md), else the store.

        Args:
            fetches: URIs. What this very command was given to reach their origins with counts; an agent has its own, and isn't asked then.
            looks: the command only looks, and makes no store just to find it empty.

        Raises:
            AgentUnreachable, BadConfig, StoreError; NotCached: it only looks, and there is no store.
        """
        read = settings or self.settings()
        config = read.config()
        remote = lazy.reached(read, self.output, self.environ, lazy.schemes_of(fetches))
        if remote is not None:
            with remote:
                yield remote
            return
        if looks:
            self.expect_store()
        with lazy.cache_of(config) as cache, cache.naming_holders():
            yield cache

    @contextmanager
    def open_store(self, config: Config | None = None) -> Iterator[ModelCache]:
        """The store itself, whether there is an agent or not, closed at the end of the block.

        Raises:
            BadConfig, StoreError.
        """
        with lazy.cache_of(config or self.config()) as cache:
            yield cache

    def finish(self, **fields: object) -> None:
        """The command's document (`--json`), in addition to what `result` holds."""
        self.result |= fields
        self.output.document(self.result)


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _given(origin: OriginOptions) -> dict[str, tuple[str, object]]:
    """The options by the keys of their settings."""
    return {
        "s3.endpoint": ("--endpoint", origin.endpoint),
        "s3.region": ("--region", origin.region),
        "s3.profile": ("--profile", origin.profile),
        "s3.anonymous": ("--anonymous", origin.anonymous or None),
        "s3.path_style": ("--path-style" if origin.path_style else "--virtual-host", origin.path_style),
        "s3.ca_file": ("--ca-file", origin.ca_file),
        "http.ca_file": ("--ca-file", origin.ca_file),
    }
