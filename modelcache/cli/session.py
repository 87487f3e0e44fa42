"""One run of one command: its options, its output, and the only way to a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelcache.cli import lazy
from modelcache.cli.options import CommonOptions, OriginOptions
from modelcache.cli.output import Output, Style, streams
from modelcache.errors import NotCached
from modelcache.units import parse_bytes

if TYPE_CHECKING:
    from modelcache.cache import ModelCache
    from modelcache.config import Config


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
        """Settings from the environment with the options on top.

        Raises:
            BadConfig: a variable or option has a value that makes no sense.
        """
        config = lazy.load_config(self.environ, {} if self.options.root is None else {"root": _absolute(self.options.root)})
        if max_bytes is not None:
            config = replace(config, limits=replace(config.limits, max_bytes=parse_bytes(max_bytes)))
        if origin is not None:
            config = replace(config, s3=replace(config.s3, **_given(origin)))
            if origin.ca_file is not None:
                config = replace(config, http=replace(config.http, ca_file=origin.ca_file))
        return config

    def has_store(self) -> bool:
        """Whether there is something at the root that `open_cache` would open, or refuse, instead of making a store. Raises BadConfig."""
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
    def open_cache(self, config: Config | None = None) -> Iterator[ModelCache]:
        """The cache of this run, closed at the end of the block. Every command gets its cache here.

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


def _given(origin: OriginOptions) -> dict[str, Any]:
    """The options that were given, by the names of `S3Options`."""
    given: dict[str, Any] = {
        "endpoint": origin.endpoint,
        "region": origin.region,
        "profile": origin.profile,
        "anonymous": origin.anonymous or None,
        "path_style": origin.path_style,
        "ca_file": origin.ca_file,
    }
    return {name: value for name, value in given.items() if value is not None}
