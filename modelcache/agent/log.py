"""A line of an agent's log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime

Plain = str | int | float | bool


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line, without secrets (docs/agent.md, Logs).

    Attributes:
        time_s: Unix time.
        level: `debug`, `info`, `warning`, `error`, `critical`.
        event: what kind of thing happened, where it is one of those that are documented.
        model: canonical URI.
        request: id of the question that it is about.
        error: the error's code.
        fields: what belongs to the event.
    """

    time_s: float
    level: str
    logger: str
    message: str
    event: str | None = None
    model: str | None = None
    request: str | None = None
    error: str | None = None
    fields: Mapping[str, Plain] = field(default_factory=dict)
    traceback: str | None = None

    @property
    def time(self) -> str:
        """RFC 3339, to the millisecond."""
        return datetime.fromtimestamp(self.time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def as_dict(self) -> dict[str, object]:
        """As it is written: with `time` in place of `time_s`, without what is absent."""
        told = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "time_s"}
        return {"time": self.time, **{name: value for name, value in told.items() if value not in (None, {})}}
