"""`modelcache config show`: every setting, and where its value came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.session import Session
from modelcache.cli.tables import Column, Table
from modelcache.units import format_bytes, format_duration

if TYPE_CHECKING:
    from modelcache.config import Resolved

COLUMNS = (Column("setting"), Column("value"), Column("from"), Column("default"))

What = Annotated[Literal["show"], typer.Argument(metavar="show", help="Every setting with its value and where that came from.")]


def config(session: Session, what: What) -> ExitCode:
    """Show every setting, its default, and where its value came from; secrets are hidden.

    An option counts before a variable, a variable before the file, the file before the default.
    """
    settings = session.settings()
    settings.config()  # values that contradict each other are told here, too
    file = None if settings.file is None else str(settings.file)
    session.finish(file=file, settings=[document_of(one) for one in settings.values])
    session.output.line(f"file: {file or 'none'}")
    session.output.line("")
    session.output.table(Table(COLUMNS, tuple(_row(one) for one in settings.values)))
    return ExitCode.OK


def document_of(one: Resolved) -> dict[str, object]:
    """One setting, for programs; secrets are hidden."""
    kind = one.setting.kind
    return {
        "key": one.setting.key,
        "value": kind.plain(one.value),
        "unit": kind.unit or None,
        "default": kind.plain(one.default),
        "place": str(one.place),
        "name": one.name or None,
        "line": one.line,
        "variables": [variable.name for variable in one.setting.variables],
        "meaning": one.setting.meaning,
    }


def _row(one: Resolved) -> tuple[str, str, str, str]:
    return one.setting.key, _shown(one, one.value), one.origin, _shown(one, one.default)


def _shown(one: Resolved, value: object) -> str:
    """A value for people, with its unit."""
    plain = one.setting.kind.plain(value)
    if plain is None or plain == "":
        return one.setting.absent.replace("`", "") or "none"
    match one.setting.kind.unit, plain:
        case ("bytes", int() as count):
            return format_bytes(count)
        case ("bytes a second", int() as count):
            return f"{format_bytes(count)}/s"
        case ("seconds", float() as duration):
            return format_duration(duration) if duration else "0 s"
        case (_, bool() as flag):
            return str(flag).lower()
        case (_, dict() | list() as several):
            return _written(several)
    return str(plain)


def _written(value: object) -> str:
    """A table or list on one line, as TOML would have it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_written(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
