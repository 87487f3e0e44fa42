"""What `doctor` says about one thing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    """Works, but slower, less safely, or not for long."""
    FAIL = "fail"
    """A pull can't work before this is repaired."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `hint` is the next step; every finding that is not `ok` has one."""

    check: str
    level: Level
    message: str
    hint: str | None = None

    def as_dict(self) -> dict[str, object]:
        return {"check": self.check, "level": str(self.level), "message": self.message, "hint": self.hint}


def fine(check: str, message: str) -> Finding:
    return Finding(check, Level.OK, message)


def doubtful(check: str, message: str, hint: str) -> Finding:
    return Finding(check, Level.WARN, message, hint)


def broken(check: str, message: str, hint: str) -> Finding:
    return Finding(check, Level.FAIL, message, hint)
