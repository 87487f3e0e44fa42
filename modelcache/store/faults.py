"""What the operating system says, as errors of ours."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from modelcache.errors import ModelCacheError, NoSpace, StoreFault, StoreLocation, StoreReadOnly
from modelcache.units import format_bytes

P = ParamSpec("P")
T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
GONE = (errno.ENOENT, errno.ENOTDIR)
TOO_MANY = (errno.EMFILE, errno.ENFILE)
SCARCE = (*TOO_MANY, errno.ENOMEM)


class _Addressed(Protocol):
    @property
    def address(self) -> str: ...


S = TypeVar("S", bound=_Addressed)


def translated(error: OSError, address: str, *, needed_bytes: int = 0) -> ModelCacheError:
    """ENOSPC and EDQUOT → NoSpace, EXDEV → StoreLocation, EROFS, EACCES and EPERM → StoreReadOnly, others → StoreFault."""
    place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else address
    if error.errno in FULL:
        available, files = _available(address)
        what = f"{format_bytes(needed_bytes)} were" if needed_bytes else "a name or record was"
        said = f"the disk filled up: {what} to be written, {format_bytes(available)} are free"
        hint = "`modelcache gc` makes room; or remove something else from that disk"
        if files == 0:
            said = f"the file system can have no more files (inodes), though {format_bytes(available)} are free"
            hint = "remove models of many files (`modelcache rm`), or other files from that disk"
        return NoSpace(
            said, needed_bytes=needed_bytes, available_bytes=available, evictable_bytes=0, held_bytes=0, address=address, hint=hint
        )
    if error.errno == errno.EXDEV:
        return elsewhere(place)
    if error.errno in REFUSED:
        return StoreReadOnly(f"the store can't be written ({error.strerror})", address=place)
    if error.errno in GONE:
        hint = "was it removed, or its disk unmounted, while this ran? `modelcache doctor` looks; the same command fetches what is missing"
        return StoreFault(f"a part of the store is gone ({error.strerror})", address=place, hint=hint)
    if error.errno in TOO_MANY:
        hint = "raise the limit (`ulimit -n`, LimitNOFILE= of a service; of the machine: fs.file-max), or fetch fewer models at once"
        return StoreFault(f"no more files may be open ({error.strerror})", address=place, hint=hint)
    if error.errno == errno.ENOMEM:
        return StoreFault(f"there is no memory left ({error.strerror})", address=place, hint="raise its limit, or end what takes it")
    return StoreFault(f"the store's disk failed ({error.strerror or error})", address=place)


def is_of_the_disk(error: OSError) -> bool:
    """Whether it tells something of what the disk keeps: not of files or memory that this process has too few of just now."""
    return error.errno not in SCARCE


def unless_of_the_disk(error: OSError) -> None:
    """`onerror` of os.walk: a directory that is gone, or damaged, is left out, and none because this process lacks something."""
    if not is_of_the_disk(error):
        raise error


def elsewhere(place: str) -> StoreLocation:
    """A part of the store is a mount of its own (of another file system, or of the same one once more)."""
    return StoreLocation(
        "a part of the store is a mount of its own, and files can't be linked or renamed across mounts",
        address=place,
        hint="mount one file system for the whole store, or name another root with --root or MODELCACHE_ROOT",
    )


@contextmanager
def disk_faults(address: str, *, needed_bytes: int = 0) -> Iterator[None]:
    """Turn an OSError of the block into an error of ours."""
    try:
        yield
    except OSError as error:
        raise translated(error, address, needed_bytes=needed_bytes) from error


@contextmanager
def unless_unwritable() -> Iterator[None]:
    """For what is noted of a hit: where it can't be written, or has no room, it is left out, and the hit is one all the same."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*REFUSED, *FULL):
            raise


def guarded(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """The same method, with `disk_faults` around it."""

    @functools.wraps(method)
    def inner(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            raise translated(error, self.address) from error

    return inner


def _available(address: str) -> tuple[int, int | None]:
    """Bytes that are free, and how many files may still be made; None where the file system has no such bound."""
    try:
        found = os.statvfs(address)
    except OSError:
        return 0, None
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None
