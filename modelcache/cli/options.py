"""Options that several commands share, as frozen dataclasses, and how their fields become options of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

_common = partial(typer.Option, rich_help_panel="Options of every command")
_origin = partial(typer.Option, rich_help_panel="How the origin is reached")
_selection = partial(typer.Option, rich_help_panel="What is fetched")


def _place(text: str) -> Path:
    """Not more: whose store it is, or what can't be read, is told by what opens it. `Path("")` is the current directory."""
    if not text:
        raise typer.BadParameter("it is empty")
    return Path(text)


def _socket(text: str) -> str:
    if not text:
        raise typer.BadParameter("it is empty")
    return text


FLAG = ""
"""What stands for the value of an option without one."""


@dataclass(frozen=True)
class CommonOptions:
    """Accepted before and after the name of the command; the later one counts."""

    root: Annotated[Path | None, _common("--root", metavar="DIRECTORY", parser=_place, help="The store. Also MODELCACHE_ROOT.")] = None
    config: Annotated[
        Path | None, _common("--config", metavar="FILE", parser=_place, help="Settings, in TOML. Also MODELCACHE_CONFIG.")
    ] = None
    agent: Annotated[
        str | None,
        _common(
            "--agent",
            metavar="SOCKET",
            parser=_socket,
            help="Socket of the node's agent; none: work on the store itself. Also MODELCACHE_AGENT.",
        ),
    ] = None
    as_json: Annotated[bool, _common("--json", metavar=FLAG, help="One JSON document on stdout.")] = False
    quiet: Annotated[bool, _common("--quiet", "-q", metavar=FLAG, help="No progress, no summary.")] = False
    verbose: Annotated[bool, _common("--verbose", "-v", metavar=FLAG, help="Every detail of an error.")] = False
    no_color: Annotated[bool, _common("--no-color", metavar=FLAG, help="No colors. Also NO_COLOR.")] = False

    def over(self, earlier: CommonOptions) -> CommonOptions:
        """These options, and where they say nothing, the earlier ones."""
        return CommonOptions(**{item.name: getattr(self, item.name) or getattr(earlier, item.name) for item in fields(self)})


@dataclass(frozen=True)
class OriginOptions:
    """How `pull` reaches an origin. No credential is among them: arguments can be read by every user of the machine."""

    endpoint: Annotated[str | None, _origin("--endpoint", metavar="URL", help="S3 server. Also AWS_ENDPOINT_URL.")] = None
    region: Annotated[str | None, _origin("--region", metavar="NAME", help="S3 region. Also AWS_REGION.")] = None
    profile: Annotated[str | None, _origin("--profile", metavar="NAME", help="AWS profile with the credential. Also AWS_PROFILE.")] = None
    anonymous: Annotated[bool, _origin("--anonymous", metavar=FLAG, help="S3 without a credential.")] = False
    path_style: Annotated[
        bool | None, _origin("--path-style/--virtual-host", metavar=FLAG, help="Where the bucket stands in S3's URLs.")
    ] = None
    ca_file: Annotated[Path | None, _origin("--ca-file", metavar="PEM", parser=_place, help="CAs that vouch for the origin.")] = None


@dataclass(frozen=True)
class SelectionOptions:
    """What `pull` fetches, and when it asks the origin."""

    include: Annotated[list[str] | None, _selection("--include", metavar="PATTERN", help="Only files that match; repeatable.")] = None
    exclude: Annotated[list[str] | None, _selection("--exclude", metavar="PATTERN", help="No file that matches; repeatable.")] = None
    refresh: Annotated[
        Literal["always", "auto", "never"],
        _selection("--refresh", help="When to ask for a newer version; auto: when the last answer is old."),
    ] = "always"
    offline: Annotated[bool, _selection("--offline", metavar=FLAG, help="The same as --refresh never.")] = False
    max_bytes: Annotated[
        str | None, _selection("--max-bytes", metavar="SIZE", help="Cap over the store, as 200GiB. Also MODELCACHE_MAX_BYTES.")
    ] = None


Gather = Callable[[Mapping[str, Any]], dict[str, Any]]


def spread(function: Callable[..., object], first: inspect.Parameter, **more: type) -> tuple[inspect.Signature, Gather]:
    """A command's parameters with each dataclass among them replaced by its fields, and the way back.

    Args:
        function: its first parameter is not an option and is left out.
        first: stands in its place.
        more: further dataclasses whose fields the command takes.

    Returns:
        The signature that typer reads, and what makes the function's arguments (and those of `more`) of the values that typer read.
    """
    hints = get_type_hints(function, include_extras=True)
    groups = {}
    parameters = [first]
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
    groups |= more
    for kind in groups.values():
        parameters += _parameters_of(kind)

    def gather(values: Mapping[str, Any]) -> dict[str, Any]:
        left = dict(values)
        made = {name: kind(**{item.name: left.pop(item.name) for item in fields(kind)}) for name, kind in groups.items()}
        return left | made

    return inspect.Signature(parameters), gather


def _parameters_of(kind: type) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(item.name, keyword, default=item.default, annotation=hints[item.name]) for item in fields(kind)]
