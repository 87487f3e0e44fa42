"""From the places where settings are written to one value each, with the place that it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from modelcache.config.file import ConfigFile
from modelcache.config.setting import Environ, Setting
from modelcache.errors import BadConfig


class Place(StrEnum):
    """Where a value was written, the first of them before the later ones."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


@dataclass(frozen=True)
class Flag:
    """What the command line says about a setting: an option's name, and its text or the value itself."""

    name: str
    value: object


@dataclass(frozen=True)
class Resolved:
    """One setting's value.

    Attributes:
        place, name: where it came from: the option, the variable, or the file's path.
        file: where that is a file.
    """

    setting: Setting
    value: Any
    default: Any
    place: Place
    name: str = ""
    file: ConfigFile | None = None

    @property
    def line(self) -> int | None:
        """In the file; None if it can't be told. Looked for when asked: that reads the file again."""
        return None if self.file is None else self.file.line(self.setting.key)

    @property
    def origin(self) -> str:
        """For people: `MODELCACHE_ROOT`, `/etc/modelcache/config.toml:3`, `default`."""
        return str(self.place) if self.place is Place.DEFAULT else self.name + (f":{self.line}" if self.line else "")


def resolve(
    settings: Sequence[Setting], defaults: object, environ: Environ, file: ConfigFile | None, flags: Mapping[str, Flag]
) -> list[Resolved]:
    """The value of every setting. `flags` are by key.

    Args:
        defaults: the object whose attributes (`Setting.field`) are the defaults.

    Raises:
        BadConfig: a value that makes no sense; the message names the option, the variable, or file, line and key.
    """
    found: list[Resolved] = []
    values: dict[str, Any] = {}
    for one in settings:
        default = _attribute(defaults, one.field) if one.default_of is None else one.default_of(values)
        resolved = _of_flag(one, default, flags) or _of_environ(one, default, environ) or _of_file(one, default, file)
        found.append(resolved or Resolved(one, default, default, Place.DEFAULT))
        values[one.key] = found[-1].value
    return found


def _of_flag(one: Setting, default: Any, flags: Mapping[str, Flag]) -> Resolved | None:
    flag = flags.get(one.key)
    if flag is None:
        return None
    try:
        value = one.kind.of_text(flag.value) if isinstance(flag.value, str) else flag.value
    except BadConfig as error:
        raise _placed(flag.name, error) from None
    return Resolved(one, value, default, Place.FLAG, flag.name)


def _of_environ(one: Setting, default: Any, environ: Environ) -> Resolved | None:
    for variable in one.variables:
        try:
            value = variable.value(environ, one.kind)
        except BadConfig as error:
            raise _placed(variable.name, error) from None
        if value is not None or (variable.read is None and environ.get(variable.name)):
            return Resolved(one, value, default, Place.ENVIRONMENT, variable.name)
    return None


def _of_file(one: Setting, default: Any, file: ConfigFile | None) -> Resolved | None:
    if file is None or one.key not in file.values:
        return None
    try:
        value = one.kind.of_toml(file.values[one.key])
    except BadConfig as error:
        raise file.refusal(one.key, error) from None
    return Resolved(one, value, default, Place.FILE, str(file.path), file)


def _placed(name: str, error: BadConfig) -> BadConfig:
    return BadConfig(f"{name}: {error.message}", got=error.got, hint=error.hint)


def _attribute(thing: object, path: str) -> Any:
    for name in path.split("."):
        thing = getattr(thing, name)
    return thing


def expect_private(file: ConfigFile, found: Sequence[Resolved]) -> None:
    """Raises BadConfig: a secret stands in a file that every user of the machine can read."""
    secret = [one for one in found if one.place is Place.FILE and one.setting.kind.secret_in(one.value)]
    if secret and file.readable_by_all:
        raise BadConfig(
            f"{file.path}: every user of this machine can read the file, and `{secret[0].setting.key}` holds a secret",
            address=str(file.path),
            hint="`chmod 600` it (a Kubernetes Secret: `defaultMode: 0400`), or move the secret out of it",
        )
