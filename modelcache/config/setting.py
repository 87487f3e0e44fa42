"""What a setting is: its name in the file, its variables, its kind, and where in `Config` its value goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modelcache.config.kinds import Kind

Environ = Mapping[str, str]


@dataclass(frozen=True)
class Variable:
    """An environment variable that can give a setting its value.

    Attributes:
        name: as documented.
        read: makes the setting's value (None: no say) of the whole environment, where that takes more than the setting's kind
            reading this variable's text. Raises BadConfig.
        beside: further variables that `read` looks at.
    """

    name: str
    read: Callable[[Environ], Any] | None = None
    beside: tuple[str, ...] = ()

    def value(self, environ: Environ, kind: Kind) -> Any:
        """None if it is absent or empty. Raises BadConfig."""
        if self.read is not None:
            return self.read(environ)
        text = environ.get(self.name, "")
        return kind.of_text(text) if text else None


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: in the file, dotted: `store.max_bytes`.
        field: where its value goes in `Config`: `limits.max_bytes`. Its default is what stands there in `Config`'s own default.
        variables: the first that is set counts: ours, then KServe's and the SDKs' own.
        meaning: one line for the documentation.
        absent: for the documentation, what stands for the default where that is None or depends on the machine.
        example: for the documentation, a value in TOML where the kind's own says little.
        default_of: the default, from the values of the settings before it (by key), where it depends on them.
    """

    key: str
    field: str
    kind: Kind
    variables: tuple[Variable, ...]
    meaning: str
    absent: str = ""
    example: str = ""
    default_of: Callable[[Mapping[str, Any]], Any] | None = None


def setting(key: str, field: str, kind: Kind, variables: str | tuple[str | Variable, ...], meaning: str, **more: Any) -> Setting:
    """A `Setting`; plain names (several divided by spaces) stand for variables that the kind reads."""
    given = tuple(variables.split()) if isinstance(variables, str) else variables
    return Setting(key, field, kind, tuple(one if isinstance(one, Variable) else Variable(one) for one in given), meaning, **more)
