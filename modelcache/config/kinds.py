"""What a setting's value can be: how it is read from text and from TOML, and how it is shown without its secrets."""

from __future__ import annotations

import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from modelcache.errors import BadConfig
from modelcache.uri_secrets import redact_url

HIDDEN = "[hidden]"
"""What is shown in place of a secret."""
_TOML_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list", dict: "a table"}


def without_credential(text: str) -> str:
    """A text that may be a URL, without userinfo and query in it."""
    return redact_url(text) if "://" in text else text


class Kind(Protocol):
    """What a value can be. Readers raise BadConfig; its message and `got` show no secret."""

    @property
    def wanted(self) -> str:
        """What is expected, for errors: `a size such as `200GiB``."""
        ...

    @property
    def unit(self) -> str:
        """Of the value that is read; empty if it has none."""
        ...

    @property
    def entries(self) -> Sequence[Entry]:
        """Keys inside the value, for its documentation."""
        ...

    @property
    def example(self) -> str:
        """A value in TOML, for its documentation; empty where `entries` tell more."""
        ...

    def of_text(self, text: str) -> Any:
        """The value, from a variable or an option."""
        ...

    def of_toml(self, value: object) -> Any:
        """The value, from a file."""
        ...

    def plain(self, value: Any) -> object:
        """The value as JSON knows it, with `HIDDEN` in place of secrets."""
        ...

    def secret_in(self, value: Any) -> bool:
        """Whether the value holds a secret."""
        ...


@dataclass(frozen=True)
class Entry:
    """One key of a table.

    Attributes:
        name: its key in TOML, and of the argument that `TableOf.make` gets unless `argument` says another.
    """

    name: str
    kind: Kind
    meaning: str
    required: bool = False
    argument: str = ""


@dataclass(frozen=True)
class Scalar:
    """One value, read from text by `read` (which raises BadConfig or ValueError); TOML's numbers and booleans through their text.

    Attributes:
        types: TOML types that it is written in.
        show: the value as JSON and TOML know it.
        hide: takes what is secret out of a text.
        secret: all of it is.
    """

    wanted: str
    read: Callable[[str], Any]
    unit: str = ""
    types: tuple[type, ...] = (str,)
    show: Callable[[Any], object] = lambda value: value
    hide: Callable[[str], str] = without_credential
    secret: bool = False
    example: str = '"…"'

    @property
    def entries(self) -> Sequence[Entry]:
        return ()

    def of_text(self, text: str) -> Any:
        try:
            return self.read(text)
        except BadConfig as error:
            raise (self._misread(text) if self.secret else error) from None
        except ValueError:
            raise self._misread(text) from None

    def of_toml(self, value: object) -> Any:
        if type(value) not in self.types:
            got = None if self.secret else self.hide(json.dumps(value, default=str))
            raise BadConfig(f"{type_name(value)} in place of {self.wanted}", got=got)
        return self.of_text(str(value).lower() if isinstance(value, bool) else str(value))

    def plain(self, value: Any) -> object:
        shown = self.show(value)
        if self.secret and shown is not None:
            return HIDDEN
        return self.hide(shown) if isinstance(shown, str) else shown

    def secret_in(self, value: Any) -> bool:
        return value is not None and (self.secret or self.plain(value) != self.show(value))

    def _misread(self, text: str) -> BadConfig:
        if self.secret:
            return BadConfig(f"not {self.wanted}")
        return BadConfig(f"`{self.hide(text)}` is not {self.wanted}", got=self.hide(text))


class Structured(ABC):
    """A value of several: JSON in a variable, tables and lists in a file."""

    unit = ""
    wanted = "a table"
    example = ""

    def of_text(self, text: str) -> Any:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise BadConfig(f"not the JSON of {self.wanted}") from None
        return self.of_toml(value)

    @abstractmethod
    def of_toml(self, value: object) -> Any: ...


@dataclass(frozen=True)
class TableOf(Structured):
    """A table of known keys, made into an object by `make`, which gets the given ones and may raise BadConfig.

    An entry's value in the object is its attribute of the same name.
    """

    entries: tuple[Entry, ...]
    make: Callable[..., Any]

    def of_toml(self, value: object) -> Any:
        given = expect_table(value, self.wanted)
        known = {entry.name: entry for entry in self.entries}
        arguments = {}
        for name, inner in given.items():
            if name not in known:
                raise BadConfig(f"no key `{name}` here", got=name, hint=nearest(name, known))
            arguments[known[name].argument or name] = inside(name, known[name].kind, inner)
        missing = [entry.name for entry in self.entries if entry.required and entry.name not in given]
        if missing:
            raise BadConfig(f"the key `{missing[0]}` is missing")
        return self.make(**arguments)

    def plain(self, value: Any) -> object:
        shown = {entry.name: entry.kind.plain(getattr(value, entry.argument or entry.name)) for entry in self.entries}
        return {name: inner for name, inner in shown.items() if inner is not None}

    def secret_in(self, value: Any) -> bool:
        return any(entry.kind.secret_in(getattr(value, entry.argument or entry.name)) for entry in self.entries)


@dataclass(frozen=True)
class ListOf(Structured):
    """A list of values of one kind, as a tuple; of tables it is written `[[key]]`."""

    kind: Kind
    wanted: str = "a list"

    @property
    def entries(self) -> Sequence[Entry]:
        return [Entry(f"[].{entry.name}", entry.kind, entry.meaning, entry.required) for entry in self.kind.entries]

    def of_toml(self, value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise BadConfig(f"{type_name(value)} in place of {self.wanted}")
        return tuple(inside(f"{number}.", self.kind, inner) for number, inner in enumerate(value, 1))

    def plain(self, value: Iterable[Any]) -> object:
        return [self.kind.plain(inner) for inner in value]

    def secret_in(self, value: Iterable[Any]) -> bool:
        return any(self.kind.secret_in(inner) for inner in value)


@dataclass(frozen=True)
class MapOf(Structured):
    """A table whose keys are free, with values of one kind, as a dict.

    Attributes:
        name: of the key, for documentation: `<host>`.
        check: raises BadConfig for a key that can't be one.
    """

    kind: Any
    name: str = "<name>"
    check: Callable[[str], object] = field(default=lambda key: None)

    @property
    def entries(self) -> Sequence[Entry]:
        inner = self.kind.entries
        if not inner:
            return [Entry(f".{self.name}", self.kind, "")]
        return [Entry(f".{self.name}{_dotted(entry.name)}", entry.kind, entry.meaning, entry.required) for entry in inner]

    def of_toml(self, value: object) -> dict[str, Any]:
        given = expect_table(value, self.wanted)
        for key in given:
            self.check(key)
        return {key: inside(key, self.kind, inner) for key, inner in given.items()}

    def plain(self, value: Mapping[str, Any]) -> object:
        return {key: self.kind.plain(inner) for key, inner in value.items()}

    def secret_in(self, value: Mapping[str, Any]) -> bool:
        return any(self.kind.secret_in(inner) for inner in value.values())


@dataclass(frozen=True)
class Free(Structured):
    """A table for somebody else's use (an SDK's options): any TOML in it. All of its values count as secret."""

    entries: tuple[Entry, ...] = ()

    def of_toml(self, value: object) -> dict[str, Any]:
        return dict(expect_table(value, self.wanted))

    def plain(self, value: Mapping[str, Any]) -> object:
        return dict.fromkeys(value, HIDDEN)

    def secret_in(self, value: Mapping[str, Any]) -> bool:
        return bool(value)


def inside(name: str, kind: Kind, value: object) -> Any:
    """Read a value that stands inside another; an error says where. Raises BadConfig."""
    try:
        return kind.of_toml(value)
    except BadConfig as error:
        raise BadConfig(f"`{name}`: {error.message}", got=error.got, hint=error.hint, address=error.address) from None


def expect_table(value: object, wanted: str) -> Mapping[str, Any]:
    """Raises BadConfig if it is no table."""
    if not isinstance(value, dict):
        raise BadConfig(f"{type_name(value)} in place of {wanted}")
    return value


def type_name(value: object) -> str:
    """TOML's type, in words."""
    return _TOML_TYPES.get(type(value), "a date or time")


def nearest(name: str, known: Iterable[str]) -> str:
    """The next step for somebody who wrote a key that does not exist."""
    names = list(known)
    found = difflib.get_close_matches(name, names, n=1)
    return f"did you mean `{found[0]}`?" if found else f"known here: {', '.join(names)}"


def _dotted(name: str) -> str:
    return name if name.startswith((".", "[")) else f".{name}"
