"""The agent's unix sockets: in a directory of the owner's own, for nobody else."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modelcache.errors import BadConfig, StoreBusy

logger = logging.getLogger(__name__)
MODE = 0o600
NAME = "s"
"""Of a socket in the directory that it is bound in."""
RANDOM_BYTES = 8
"""Of that directory's name (`tempfile.mkdtemp`)."""
MAX_PATH_BYTES = 107 - len("..") - RANDOM_BYTES - len(f"/{NAME}")
"""Of the name of a unix socket the kernel takes 107 (unix(7), sun_path); the place where it is bound has a longer one."""


def prepare(path: Path) -> None:
    """Make the socket's directory, for its owner alone, and remove what a killed agent left there.

    Raises:
        BadConfig: too long a name, or something else than a socket is there.
        StoreBusy: an agent answers at it.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise BadConfig(f"a socket's name has at most {MAX_PATH_BYTES} bytes", address=str(path), got=str(len(os.fsencode(path))))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep(path)
    except OSError as error:
        raise _not_here(path, error) from None
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
def private(path: Path) -> Iterator[Path]:
    """Where to bind, in the block, a socket that at its end answers at `path`, its owner's alone from its first moment.

    Who binds a name makes it with the mode that the process's mask leaves, which is every thread's: so it is bound where nobody else
    may look, and linked from there.

    Raises:
        BadConfig: it can't be made there.
        StoreBusy: another agent has made one meanwhile.
    """
    try:
        inside = Path(tempfile.mkdtemp(prefix=_hidden(path), dir=path.parent))
    except OSError as error:
        raise _not_here(path, error) from None
    fd = os.open(inside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # it is somebody's, and no killed agent's
        yield inside / NAME
        _publish(inside / NAME, path)
    finally:
        _clear(inside)
        os.close(fd)


def _publish(bound: Path, path: Path) -> None:
    bound.chmod(MODE)
    try:
        os.link(bound, path)
    except FileExistsError:
        raise StoreBusy("an agent answers at this socket already", address=str(path)) from None


def _sweep(path: Path) -> None:
    """Remove what agents left that were killed as they bound. What can't be removed is in nobody's way."""
    for inside in path.parent.iterdir():
        if not inside.name.startswith(_hidden(path)):
            continue
        try:
            _clear_if_nobodys(inside)
        except (FileNotFoundError, BlockingIOError) as error:
            logger.debug("went meanwhile, or another agent binds there: %s (%s)", inside, error.strerror)
        except OSError as error:
            logger.warning("what a killed agent left can't be removed: %s (%s)", inside, error.strerror)


def _clear_if_nobodys(inside: Path) -> None:
    fd = os.open(inside, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _clear(inside)
    finally:
        os.close(fd)


def _clear(inside: Path) -> None:
    remove(inside / NAME)
    inside.rmdir()


def _not_here(path: Path, error: OSError) -> BadConfig:
    return BadConfig(f"no socket can be made here ({error.strerror})", address=str(path))


def _hidden(path: Path) -> str:
    return f".{path.name}."


def remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
