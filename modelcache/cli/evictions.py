"""What goes to make room for what a command brings, told when the command has done."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from modelcache.units import format_bytes

if TYPE_CHECKING:
    from modelcache.cli.output import Output

STORE_LOG = "modelcache.store.making_room"
"""Who logs them, each as an `event` named `evicted` with its `model` and `fields` (docs/agent.md, Logs)."""


class Evictions(logging.Handler):
    """Keeps the records of evictions."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[dict[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields: Mapping[str, object] = getattr(record, "fields", {})
        if getattr(record, "event", None) == "evicted":
            self.found.append({"uri": getattr(record, "model", None), **fields})


@contextmanager
def telling_evictions(output: Output) -> Iterator[None]:
    """Note at the end of the block which models were evicted in it, also where it fails."""
    log, seen = logging.getLogger(STORE_LOG), Evictions()
    level = log.level
    log.addHandler(seen)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(seen)
        for one in seen.found:
            output.event("evicted", one)
            output.note(f"evicted to make room: {one['uri'] or one['digest']}, freed {format_bytes(int(str(one['freed_bytes'])))}")
