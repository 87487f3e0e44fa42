"""The agent's unix sockets: in a directory of the owner's own, for nobody else."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modelcache.errors import BadConfig, StoreBusy

MODE = 0o600
MAX_PATH_BYTES = 107
"""Of a unix socket's name (unix(7), sun_path)."""


def prepare(path: Path) -> None:
    """Make the socket's directory, for its owner alone, and remove what a killed agent left there.

    Raises:
        BadConfig: too long a name, or something else than a socket is there.
        StoreBusy: an agent answers at it.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise BadConfig(f"a socket's name has at most {MAX_PATH_BYTES} bytes", address=str(path), got=str(len(os.fsencode(path))))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.is_socket():
        if path.exists():
            raise BadConfig("there is something else than a socket", address=str(path))
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # its agent was killed
        else:
            raise StoreBusy("an agent answers at this socket already", address=str(path))


@contextmanager
def private() -> Iterator[None]:
    """Sockets that are bound in this block are their owner's alone. Not for several threads: the mask is the process's."""
    before = os.umask(0o777 & ~MODE)
    try:
        yield
    finally:
        os.umask(before)


def remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
