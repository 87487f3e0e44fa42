"""The file or stream of an export: written whole or not at all, read in order, both cancellable."""

from __future__ import annotations

import errno
import io
import os
import secrets
import select
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from modelcache.errors import FileFault, NoSpace
from modelcache.patience import Cancellation
from modelcache.units import format_bytes

Place = str | Path | BinaryIO
"""A path (of a regular file, or of a pipe or device that is there), or an open stream."""
Write = Callable[[bytes | memoryview], None]
ReadInto = Callable[[memoryview], int]

LOOK_MS = 200
"""How often a wait for the other end of a pipe looks whether it is cancelled."""
PIPE_BYTES = select.PIPE_BUF
"""What a pipe that says it has room takes without blocking; pipe(7)."""
WRITE_BYTES = 256 << 10
"""Most bytes of one buffered write; see `modelcache.store.durable.WRITE_BYTES`."""
STREAM = "-"


def address_of(place: Place) -> str:
    """What errors call it."""
    return str(place) if isinstance(place, (str, Path)) else STREAM


# -- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def written(place: Place, size_bytes: int, cancel: Cancellation) -> Iterator[Write]:
    """What writes to `place`. A regular file appears under its name, durable, when the block ends well, and not before.

    Raises:
        NoSpace: a regular file of `size_bytes` doesn't fit, before the first byte; or the disk filled up all the same.
        FileFault: it can't be written.
        What a stream raises; of a pipe that nobody reads, BrokenPipeError.
    """
    if not isinstance(place, (str, Path)):
        yield _stream_writer(place, cancel)
        return
    path = Path(place)  # as it is: `/dev/stdout` leads to a pipe by a link, and to nothing by that link's text
    with _faults(str(place)):
        special = path.exists() and not path.is_file()
        if special and path.is_dir():
            raise FileFault("an export can't be written to a directory", address=str(place), hint="name a file in it")
    if special:
        with _faults(str(place)), path.open("wb", buffering=0) as stream, _filling(str(place), size_bytes, stream.fileno()):
            yield _stream_writer(stream, cancel)
        return
    with _emerging(Path(os.path.realpath(place)), str(place), size_bytes) as fd:
        yield lambda data: _write_file(fd, data, cancel)


@contextmanager
def _emerging(path: Path, address: str, size_bytes: int) -> Iterator[int]:
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    with _faults(address):
        _check_room(path.parent, address, size_bytes)
        try:
            with _filling(address, size_bytes):
                fd, named = _begun(temporary)
            try:
                with _filling(address, size_bytes, fd):
                    yield fd
                    os.fsync(fd)
                    if not named:
                        _name(fd, temporary)
            finally:
                os.close(fd)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _begun(temporary: Path) -> tuple[int, bool]:
    """A new file, and whether it has its name already. One without a name (open(2), O_TMPFILE) goes with a process that is killed; not
    every file system has such, or lets them be named later."""
    flags = os.O_WRONLY | os.O_CLOEXEC
    with suppress(OSError):
        tried = os.open(temporary.parent, flags | os.O_TMPFILE, 0o600)
        try:
            _name(tried, temporary)
        finally:
            os.close(tried)
        temporary.unlink()
        return os.open(temporary.parent, flags | os.O_TMPFILE, 0o600), False
    return os.open(temporary, flags | os.O_CREAT | os.O_EXCL, 0o600), True


def _name(fd: int, path: Path) -> None:
    """Give a file that has none a name. Raises FileExistsError."""
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd)  # without a descriptor Python calls link(2), which follows no link


def _check_room(directory: Path, address: str, size_bytes: int) -> None:
    found = os.statvfs(directory)
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < size_bytes:
        raise _no_space(f"{format_bytes(free_bytes)} are free where it is to be written", address, size_bytes, free_bytes)


def _no_space(why: str, address: str, size_bytes: int, room_bytes: int) -> NoSpace:
    return NoSpace(
        f"the export takes {format_bytes(size_bytes)}, and {why}",
        needed_bytes=size_bytes,
        available_bytes=room_bytes,
        evictable_bytes=0,
        held_bytes=0,
        address=address,
        hint="write it to another file system, or to a pipe (`-`)",
    )


@contextmanager
def _filling(address: str, size_bytes: int, fd: int | None = None) -> Iterator[None]:
    """That there was no more room, with the bytes that there was room for: statvfs(3) knows nothing of what quotas leave."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        room_bytes = 0
        with suppress(OSError):  # what has no position
            room_bytes = 0 if fd is None else os.lseek(fd, 0, os.SEEK_CUR)
        raise _no_space(
            f"after {format_bytes(room_bytes)} there was no room ({error.strerror})", address, size_bytes, room_bytes
        ) from error


@contextmanager
def _faults(address: str) -> Iterator[None]:
    """An OSError of the block as an error of ours; that nobody reads a pipe is the caller's to know."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FileFault(f"the file can't be used ({error.strerror or error})", address=address) from error


def _write_file(fd: int, data: bytes | memoryview, cancel: Cancellation) -> None:
    view = memoryview(data)
    while view.nbytes:
        cancel.check()
        view = view[os.write(fd, view[:WRITE_BYTES]) :]


def _stream_writer(stream: BinaryIO, cancel: Cancellation) -> Write:
    if isinstance(stream, io.FileIO):
        fd = stream.fileno()
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            return lambda data: _write_pipe(fd, data, cancel)
        return lambda data: _write_file(fd, data, cancel)

    def write(data: bytes | memoryview) -> None:
        cancel.check()
        view = memoryview(data)
        while view.nbytes:  # a raw stream may take less
            view = view[stream.write(view) or 0 :]

    return write


def _write_pipe(fd: int, data: bytes | memoryview, cancel: Cancellation) -> None:
    """A reader that stands still must not keep a cancelled export alive."""
    view = memoryview(data)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while view.nbytes:
        cancel.check()
        if poll.poll(LOOK_MS):
            view = view[os.write(fd, view[:PIPE_BYTES]) :]


# -- reading ----------------------------------------------------------------------------------------------------------


@contextmanager
def opened(place: Place, cancel: Cancellation) -> Iterator[ReadInto]:
    """What puts the next bytes of `place` into a buffer and says how many; 0 at its end.

    Raises:
        FileFault: it can't be read.
    """
    if not isinstance(place, (str, Path)):
        yield _stream_reader(place, address_of(place), cancel)
        return
    with _faults(str(place)):
        stream = open(place, "rb", buffering=0)  # noqa: SIM115  closed below; its own errors are told apart from the block's
    with stream:
        yield _stream_reader(stream, str(place), cancel)


def _stream_reader(stream: BinaryIO, address: str, cancel: Cancellation) -> ReadInto:
    read = stream.readinto if isinstance(stream, (io.RawIOBase, io.BufferedIOBase)) else None
    poll = select.poll() if isinstance(stream, io.FileIO) and not stat.S_ISREG(os.fstat(stream.fileno()).st_mode) else None
    if poll is not None:
        poll.register(stream.fileno(), select.POLLIN)

    def readinto(buffer: memoryview) -> int:
        cancel.check()
        with _faults(address):
            while poll is not None and not poll.poll(LOOK_MS):
                cancel.check()
            if read is not None:
                return read(buffer) or 0
            data = stream.read(buffer.nbytes)
            buffer[: len(data)] = data
            return len(data)

    return readinto
