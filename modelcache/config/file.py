"""The configuration file: where it is, what is in it, and on which line."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelcache.config.kinds import nearest, type_name
from modelcache.config.setting import Environ
from modelcache.errors import BadConfig

VARIABLE = "MODELCACHE_CONFIG"
MACHINE_FILE = Path("/etc/modelcache/config.toml")
MAX_BYTES = 1 << 20
"""No configuration is larger; something else was named."""
MAX_STATEMENT_LINES = 200


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file that was read.

    Attributes:
        values: what it says, by dotted key of a setting; not read any further.
        readable_by_all: by every user of the machine.
    """

    path: Path
    values: Mapping[str, object] = field(repr=False)
    text: str = field(repr=False)
    readable_by_all: bool

    @classmethod
    def read(cls, path: Path, keys: Iterable[str]) -> ConfigFile:
        """Read a file of settings with these keys.

        Raises:
            BadConfig: it can't be read, is no TOML, or has a key that is none of a setting.
        """
        text, mode = _content(path)
        try:
            tables = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise BadConfig(f"{path}: not TOML: {error}", address=str(path)) from None
        known = list(keys)
        values: dict[str, object] = {}
        for key, value in _flattened(tables, "", set(known)):
            if key not in known:
                raise _unknown(path, text, key, value, known)
            values[key] = value
        return cls(path, values, text, bool(mode & stat.S_IROTH))

    def line(self, key: str) -> int | None:
        """The line on which this key is first given, from 1; None if it can't be told."""
        return _line_of(self.text, key)

    def refusal(self, key: str, error: BadConfig) -> BadConfig:
        """What is wrong with a key's value, with its place."""
        return BadConfig(f"{_place(self.path, self.text, key)}: {error.message}", address=str(self.path), got=error.got, hint=error.hint)


def places(environ: Environ) -> list[Path]:
    """Where a file is looked for when none is named: the user's, then the machine's."""
    found = []
    named, home = Path(environ.get("XDG_CONFIG_HOME", "")), Path(environ.get("HOME", ""))
    if named.is_absolute():  # a relative one is to be ignored (XDG Base Directory)
        found.append(named)
    elif home.is_absolute():
        found.append(home / ".config")
    return [*(directory / "modelcache" / "config.toml" for directory in found), MACHINE_FILE]


def find_file(environ: Environ, named: Path | None) -> Path | None:
    """The file that counts, alone: the one that is named (`named`, then `MODELCACHE_CONFIG`), else the user's if it is there, else the
    machine's if this user may read it."""
    if named is None and environ.get(VARIABLE):
        named = Path(environ[VARIABLE])
    if named is not None:
        return named
    *users, machines = places(environ)
    found = next((path for path in users if os.path.exists(path)), machines)
    return found if found != machines or os.access(machines, os.R_OK) else None


def _content(path: Path) -> tuple[str, int]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadConfig(f"the configuration file can't be read ({error.strerror})", address=str(path)) from None
    if len(data) > MAX_BYTES:
        raise BadConfig(f"the configuration file is larger than {MAX_BYTES:,} bytes", address=str(path))
    try:
        return data.decode("utf-8"), mode
    except UnicodeDecodeError:
        raise BadConfig("the configuration file is not UTF-8", address=str(path)) from None


def _flattened(table: Mapping[str, object], prefix: str, known: set[str]) -> Iterator[tuple[str, object]]:
    """Values by dotted key, down to where a setting or an unknown key is."""
    for name, value in table.items():
        key = f"{prefix}{name}"
        if key not in known and isinstance(value, dict) and any(one.startswith(f"{key}.") for one in known):
            yield from _flattened(value, f"{key}.", known)
        else:
            yield key, value


def _unknown(path: Path, text: str, key: str, value: object, known: list[str]) -> BadConfig:
    section = any(one.startswith(f"{key}.") for one in known)
    if section:
        said, hint = f"{type_name(value)} in place of the table `[{key}]`", f"keys in it: {', '.join(_below(key, known))}"
    else:
        said, hint = f"there is no setting `{key}`", _nearest(key, known)
    return BadConfig(f"{_place(path, text, key)}: {said}", address=str(path), got=key, hint=hint)


def _nearest(key: str, known: list[str]) -> str:
    """A close key; one of the same name in another section; else what the section has."""
    section, _, name = key.rpartition(".")
    elsewhere = [one for one in known if one.rpartition(".")[2] == name]
    if elsewhere:
        return f"did you mean `{elsewhere[0]}`?"
    hint = nearest(key, [*known, *_sections(known)])
    if hint.startswith("did you mean"):
        return hint
    inside = _below(section, known)
    return f"known in `[{section}]`: {', '.join(inside)}" if inside else f"sections: {', '.join(_sections(known))}"


def _below(section: str, known: list[str]) -> list[str]:
    return [one.removeprefix(f"{section}.") for one in known if section and one.startswith(f"{section}.")]


def _sections(known: list[str]) -> list[str]:
    return list(dict.fromkeys(one.partition(".")[0] for one in known))


def _place(path: Path, text: str, key: str) -> str:
    line = _line_of(text, key)
    return f"{path}:{line}: {key}" if line else f"{path}: {key}"


def _line_of(text: str, key: str) -> int | None:
    """tomllib tells no positions: the line with the key's last part from which on the text, cut after its statement, holds the key."""
    parts = key.split(".")
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if parts[-1] in line:
            tables = _parsed_after(lines, number)
            if tables is not None and _holds(tables, parts):
                return number + 1
    return None


def _parsed_after(lines: list[str], number: int) -> Mapping[str, object] | None:
    """The text up to the end of the statement that begins on this line."""
    for stop in range(number + 1, min(len(lines), number + MAX_STATEMENT_LINES) + 1):
        try:
            return tomllib.loads("\n".join(lines[:stop]))
        except tomllib.TOMLDecodeError:
            continue
    return None


def _holds(table: object, parts: list[str]) -> bool:
    for part in parts:
        if not isinstance(table, dict) or part not in table:
            return False
        table = table[part]
    return True
