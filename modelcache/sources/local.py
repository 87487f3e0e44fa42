"""`file://`: files and directories of this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from modelcache.abc.source import Body, Listing, Origin, RemoteFile, fingerprint
from modelcache.digest import Digest
from modelcache.errors import AccessDenied, BodyCut, Cancelled, ModelCacheError, NotFound, OriginUnreachable, SourceChanged, UnsafePath
from modelcache.paths import check_tree, checked_path
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.uri import StorageUri

READ_BYTES = 1 << 20
"""Most bytes of one read: what was read is still in the CPU's cache when the caller hashes it."""
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_DIGEST = re.compile(r"/(sha256:)?[0-9a-f]{8,64}\Z")
"""What somebody typed for a path that may be meant as one."""
_REFUSED = (errno.EACCES, errno.EPERM)
_ODD = {errno.ENOENT: "a link to nothing", errno.ELOOP: "a loop of links", errno.ENAMETOOLONG: "too deep to be opened by its path"}
"""What the system says of something that a directory lists, and what it is then."""


class LocalSource:
    """Regular files of this machine, by absolute path. Safe for many threads.

    A directory is listed with everything below it. Links to files and directories are followed, also out of the directory
    (snapshots of the Hub's cache and volumes of Kubernetes are made of them); a loop of links, a dangling one and whatever is no
    regular file is refused, unless the URI's patterns leave it out.

    A version is named by mtime, size, inode and ctime. It is checked before the first byte of a range and after every read, so no
    byte of a file that was written to in between is handed out, within the clock's resolution in the kernel. A read from a file
    system that hangs (NFS) can't be interrupted.
    """

    def __init__(self, *, within: str | None = None) -> None:
        """
        Args:
            within: a directory that no link may lead out of; None: links are followed wherever they lead.
        """
        self._within = None if within is None else os.path.realpath(within)

    @property
    def origin(self) -> Origin:
        return Origin("file://")

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        """As `Source.list`."""
        cancel.check()
        address = str(uri)
        try:
            found = _walk(uri.path, cancel, self._within)
            chosen = [entry for entry in found if uri.selects(entry.path)]
            files = tuple(sorted((self._described(entry, address) for entry in chosen), key=lambda file: file.path))
        except OSError as error:
            raise _listing_error(error, address) from None
        if not files:
            if not (uri.include or uri.exclude):
                raise NotFound("there is no file in the directory", address=address, hint="put the model's files there, or name another")
            raise NotFound(
                "no file there that the patterns select", address=address, hint="the patterns stand behind the `#`: correct them"
            )
        check_tree((file.path for file in files), address=address)
        return Listing(uri, self.origin, fingerprint(files), immutable=False, files=files)

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """As `Source.open`."""
        cancel.check()
        address = f"file://{file.locator}"
        try:
            # O_NONBLOCK: a FIFO that has taken the file's place must not make the open wait for a writer.
            descriptor = os.open(file.locator, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _reading_error(error, address) from None
        try:
            body = LocalBody(descriptor, file, span, cancel)
            body.check()
            os.posix_fadvise(descriptor, span.start, span.size_bytes, os.POSIX_FADV_SEQUENTIAL)
        except BaseException:
            os.close(descriptor)
            raise
        return body

    def close(self) -> None:
        """Nothing is kept open."""

    def _described(self, entry: _Entry, address: str) -> RemoteFile:
        if not _is_within(entry.place, self._within):
            raise UnsafePath(f"{entry.path!a} is a link out of the volume", address=address, got=ascii(entry.path))
        return _described(entry, address)


class LocalBody:
    """The bytes of one range of a file; a `modelcache.abc.source.Body`."""

    stated: tuple[Digest, ...] = ()

    def __init__(self, descriptor: int, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> None:
        self._descriptor = descriptor
        self._file = file
        self._at = span.start
        self._stop = span.stop
        self._cancel = cancel
        self._aborted = False
        self._address = f"file://{file.locator}"

    def readinto(self, buffer: memoryview) -> int:
        """As `Body.readinto`."""
        if self._aborted or self._cancel.requested:
            raise Cancelled("cancelled", address=self._address)
        want = min(buffer.nbytes, self._stop - self._at, READ_BYTES)
        if want == 0:
            return 0
        try:
            count = os.preadv(self._descriptor, [buffer[:want]], self._at)
        except OSError as error:
            raise _reading_error(error, self._address) from None
        self.check()
        if count == 0:
            raise BodyCut("the file ends before its size", address=self._address, expected=f"{self._stop} bytes", got=f"{self._at} bytes")
        self._at += count
        return count

    def check(self) -> None:
        """Raises SourceChanged if the open file is not the listed version."""
        try:
            status = os.fstat(self._descriptor)
        except OSError as error:
            raise _reading_error(error, self._address) from None
        got = _validator(status)
        if not stat.S_ISREG(status.st_mode) or got != self._file.validator:
            raise SourceChanged("the file is no longer the listed version", address=self._address, expected=self._file.validator, got=got)

    def close(self) -> None:
        """As `Body.close`."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def abort(self) -> None:
        """The next `readinto` raises Cancelled; a read in progress ends by itself."""
        self._aborted = True


@dataclass(frozen=True, slots=True)
class _Entry:
    """Something found: where it is, and its path relative to what was asked for. `loops`: a link to a directory above it."""

    place: str
    path: str
    loops: bool = False


def _is_within(place: str, directory: str | None) -> bool:
    return directory is None or f"{os.path.realpath(place)}/".startswith(f"{directory.rstrip('/')}/")


def _walk(start: str, cancel: Cancellation, within: str | None) -> Iterator[_Entry]:
    """Everything under a path that is no directory, links to directories followed, though not out of `within`: what leads there is
    an entry itself. Raises OSError."""
    status = os.stat(start)
    if not _is_within(start, within):
        yield _Entry(start, os.path.basename(start))
        return
    if not stat.S_ISDIR(status.st_mode):
        yield _Entry(start, os.path.basename(start))
        return
    waiting = [(start, "", frozenset({(status.st_dev, status.st_ino)}))]
    while waiting:
        place, path, above = waiting.pop()
        cancel.check()
        with os.scandir(place) as entries:
            for entry in entries:
                below = f"{path}/{entry.name}" if path else entry.name
                if not _is_directory(entry) or not _is_within(entry.path, within):
                    yield _Entry(entry.path, below)
                    continue
                if within is not None and entry.path == os.path.join(within, "lost+found"):
                    continue  # of the volume's file system, for its administrator alone
                key = _identity(entry)
                if key is None:
                    yield _Entry(entry.path, below)
                elif key in above:
                    yield _Entry(entry.path, below, loops=True)
                else:
                    waiting.append((entry.path, below, above | {key}))


def _is_directory(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or a link to one; False of a loop of links, and of a link that lies too deep to be followed."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
            raise
        return False


def _identity(directory: os.DirEntry[str]) -> tuple[int, int] | None:
    """Device and inode; None: it lies too deep to be looked into."""
    try:
        found = directory.stat()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None
    return found.st_dev, found.st_ino


def _described(entry: _Entry, address: str) -> RemoteFile:
    """Raises UnsafePath for what is no regular file."""
    checked_path(entry.path, address=address)
    try:
        status = os.stat(entry.place)
    except OSError as error:
        if error.errno not in _ODD:
            raise
        problem = _ODD[error.errno]
    else:
        if not stat.S_ISREG(status.st_mode):
            problem = "a link to a directory above it" if entry.loops else "no regular file"
        elif status.st_size == 0 and _has_bytes(entry.place):
            problem = "longer than it says (0 bytes), as files of /proc are"
        else:
            return RemoteFile(entry.path, status.st_size, entry.place, _validator(status))
    hint = "leave it out with an exclude pattern, or name a regular file"
    raise UnsafePath(f"{entry.path!a} is {problem}", address=address, got=ascii(entry.path), hint=hint)


def _has_bytes(place: str) -> bool:
    """Whether a file that says that it is empty isn't. False where it can't be read: of nothing there is nothing to read."""
    with contextlib.suppress(OSError):
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.read(descriptor, 1) != b"" and os.fstat(descriptor).st_size == 0
        finally:
            os.close(descriptor)
    return False


def _validator(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}-{status.st_ctime_ns}"


def _listing_error(error: OSError, address: str) -> ModelCacheError:
    if error.errno in _MISSING:
        hint = "check the spelling; what is no path of this machine begins with its scheme, as `hf://owner/model`"
        if _DIGEST.search(address):
            hint = "check the spelling; a digest is asked for at no origin: `modelcache path` and `show` find what is here by it"
        if "%" in address:
            hint = "check the spelling: names of files are taken as they stand, and `%20` in one is these three characters"
        if error.errno == errno.ENAMETOOLONG:
            hint = "Linux opens no path of 4,096 bytes or more, and no name of over 255: name a shorter one that leads there"
        return NotFound("no such file or directory", address=address, hint=hint)
    return _failure(error, address)


def _reading_error(error: OSError, address: str) -> ModelCacheError:
    if error.errno in _MISSING:
        return SourceChanged("the file is gone", address=address)
    return _failure(error, address)


def _failure(error: OSError, address: str) -> ModelCacheError:
    if error.errno in _REFUSED:
        return AccessDenied("this process may not read it", address=address, hint="check owner and mode of the file and its directories")
    return OriginUnreachable(f"reading failed ({error.strerror})", address=address, hint="check the disk or mount that it is on")
