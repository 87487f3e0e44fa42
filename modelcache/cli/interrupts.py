"""Ctrl-C and SIGTERM: the first one asks the work to stop, the second one ends the process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from modelcache.cli.output import Output

if TYPE_CHECKING:
    from modelcache.patience import Cancellation

STOPPING = b"\nstopping; what was fetched is kept (once more ends at once)\n"
STOPPING_EVENT = b'{"event": "stopping"}\n'


@contextmanager
def cancelled_by_signals(cancel: Cancellation, output: Output) -> Iterator[None]:
    """SIGINT and SIGTERM cancel inside the block; the second of them ends the process the way its default does.

    In the main thread only, as Python has it.
    """
    said = STOPPING_EVENT if output.style.as_json else STOPPING

    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        stopping = True
        with suppress(OSError):  # stderr may be gone
            os.write(2, said)  # not through a buffer that this signal may have interrupted
        cancel.cancel()

    before = [(number, signal.signal(number, stop)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, previous in before:
            signal.signal(number, previous)


def raise_on_sigterm() -> None:
    """Outside of such blocks SIGTERM raises KeyboardInterrupt, as SIGINT does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
