"""Any other scheme: a listing and bytes by fsspec's filesystem of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeVar

from modelcache.abc.source import Body, Listing, Origin, RemoteFile, fingerprint
from modelcache.digest import Digest
from modelcache.errors import AccessDenied, Cancelled, InvalidUri, ModelCacheError, NotFound, OriginBusy, ProtocolViolation, UnsafePath
from modelcache.paths import check_tree, checked_path
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.any_fsspec.callers import callers_home
from modelcache.sources.any_fsspec.calls import called
from modelcache.sources.any_fsspec.filesystems import WHOLE, Filesystem, home_of, names_version
from modelcache.sources.any_fsspec.options import FsspecOptions
from modelcache.sources.any_fsspec.pool import Pool
from modelcache.sources.any_fsspec.prepared import prepared
from modelcache.sources.any_fsspec.reading import Info, Name, Reader, below, check_asked, check_name, described
from modelcache.sources.any_fsspec.refusals import Asked
from modelcache.sources.any_fsspec.sessions import Ways
from modelcache.transport import Proxies, Timeouts
from modelcache.uri import StorageUri, UriSecrets

T = TypeVar("T")
MAX_FILES = 100_000
"""Under one URI. The largest model repositories have some thousand files."""
BLOCK_BYTES = 4 << 20
"""Of one call: a block is held in memory beside the caller's buffer, and followed by a look at the version."""
LISTING_S = 600.0
"""For a whole listing, which fsspec makes in one call: 100,000 names at a hundred per request of 0.5 s."""
SLOWEST_BYTES_PER_S = 64 << 10
"""A block may take the stall time and what it takes at this rate: fsspec does not tell whether one that isn't there yet is moving."""


class FsspecSource:
    """One filesystem of fsspec, as one user (`modelcache.abc.source.Source`).

    The version of a file is what the filesystem names it by: a version id, an ETag, a checksum, else time of the last write and size.
    Where that says nothing, or only whole seconds of the last minute, the file is read in one request. Few filesystems can be told
    to serve one version only, so each block is followed by a look, and none of another version is handed out.
    """

    def __init__(
        self, uri: StorageUri, secrets: UriSecrets, options: FsspecOptions, timeouts: Timeouts, *, proxies: Proxies | None = None
    ) -> None:
        """
        Args:
            uri: any URI of the scheme and authority; other files there can be listed, too.
            secrets: what `parse_uri` took out of `uri`.
            proxies: of callers' filesystems; the owner's find their own.

        Raises:
            UnknownScheme: refused, unknown to fsspec, or its package is not installed.
            InvalidUri: a credential that the scheme has no use for.
            AccessDenied, BadConfig: a caller's keys don't do for this place.
        """
        if options.callers is None:
            self._home = home_of(uri, secrets, options)
        else:
            self._home = callers_home(uri, secrets, options.callers, Ways(proxies or Proxies(), timeouts))
        self._timeouts = timeouts
        self._pool = Pool(lambda: self._home.make(lambda made: prepared(made, timeouts)))

    @property
    def origin(self) -> Origin:
        return Origin(self._home.endpoint, self._home.ca_sha256, self._home.verified)

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        """As `Source.list`."""
        address = str(uri)
        path = self._home.path(uri)
        files = self._used(lambda filesystem: self._files(filesystem, uri, path), LISTING_S, cancel, Asked(uri.scheme, address))
        if not files:
            raise NotFound("no file there that the patterns select", address=address)
        check_tree((file.path for file in files), address=address)
        revision = fingerprint(tuple(replace(file, validator=Name.of(file).seen) for file in files))
        return Listing(uri, self.origin, revision, immutable=False, files=files)

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """As `Source.open`; the first block is read here, so that what can be refused is."""
        body = FsspecBody(self, file, span, cancel)
        try:
            body.begin()
        except BaseException:
            body.close()
            raise
        return body

    def close(self) -> None:
        """As `Source.close`."""
        self._pool.close()

    # -- for the body -----------------------------------------------------------------------------------------------

    def reader(self, file: RemoteFile, cancel: Cancellation, asked: Asked) -> Reader:
        """A reader with an instance of its own, to be given back by `done`."""
        filesystem = called(self._pool.take, self._timeouts.connect_s + self._timeouts.stall_s, cancel, asked)
        return Reader(filesystem, file, asked.address)

    def block(self, reader: Reader, span: ByteRange, cancel: Cancellation, asked: Asked) -> bytes:
        """The next block; after a refusal once more by a new instance, where that may have another credential."""
        patience_s = self._timeouts.stall_s + span.size_bytes / SLOWEST_BYTES_PER_S

        def read() -> bytes:
            return called(lambda: reader.block(span.start, span.size_bytes), patience_s, cancel, asked)

        try:
            return read()
        except (AccessDenied, OriginBusy):
            if not self._home.renewable:
                raise
        self._pool.drop(reader.filesystem)
        reader.go_on_with(called(self._pool.take, self._timeouts.connect_s + self._timeouts.stall_s, cancel, asked))
        return read()

    def done(self, reader: Reader, *, well: bool, asked: Asked) -> None:
        """Give a reader's instance back, or drop it if a call failed or may still be running."""
        if well:
            try:
                called(reader.close, self._timeouts.stall_s, Cancellation(), asked)
                self._pool.give(reader.filesystem)
                return
            except ModelCacheError:
                pass  # all bytes were read; the instance is what's left, and goes
        self._pool.drop(reader.filesystem)

    def asked(self, file: RemoteFile) -> Asked:
        authority = self._home.endpoint.partition("?")[0]
        relative = Name.of(file).path.removeprefix(self._home.prefix)
        return Asked(self._home.scheme, f"{authority}/{relative}", listed=True)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _used(self, action: Callable[[Filesystem], T], timeout_s: float, cancel: Cancellation, asked: Asked) -> T:
        """By an instance that is kept; after a refusal once more by a new one, where that may have another credential."""
        try:
            return self._used_once(action, timeout_s, cancel, asked)
        except (AccessDenied, OriginBusy):
            if not self._home.renewable:
                raise
        return self._used_once(action, timeout_s, cancel, asked)

    def _used_once(self, action: Callable[[Filesystem], T], timeout_s: float, cancel: Cancellation, asked: Asked) -> T:
        filesystem = called(self._pool.take, self._timeouts.connect_s + self._timeouts.stall_s, cancel, asked)
        try:
            result = called(functools.partial(action, filesystem), timeout_s, cancel, asked)
        except BaseException:
            self._pool.drop(filesystem)
            raise
        self._pool.give(filesystem)
        return result

    def _files(self, filesystem: Filesystem, uri: StorageUri, path: str) -> tuple[RemoteFile, ...]:
        address = str(uri)
        check_name(filesystem, path, address)
        files = []
        for name, info in below(filesystem, path, address).items():
            relative = _relative(name, path, uri)
            if not uri.selects(relative) or (name.endswith("/") and not info.get("size")):
                continue
            checked_path(relative, address=address)
            check_name(filesystem, name, address)
            files.append(self._file(filesystem, relative, name, info, address))
            if len(files) > MAX_FILES:
                hint = "name a folder further down, or add an include pattern"
                raise InvalidUri(f"over {MAX_FILES:,} files are under one URI", address=address, hint=hint)
        return tuple(sorted(files, key=lambda file: file.path))

    def _file(self, filesystem: Filesystem, relative: str, name: str, info: Info, address: str) -> RemoteFile:
        if info.get("type") == "link":
            info = filesystem.info(name)
        if info.get("type") != "file":
            raise UnsafePath(f"{relative!a} is no regular file", address=address, got=ascii(relative))
        version = described(filesystem, info, name, address)
        check_asked(filesystem, name, version, address)
        locator = Name(name, version.seen).locator
        ranged = self._home.scheme not in WHOLE
        return RemoteFile(relative, version.size_bytes, locator, version.name, version.digests, ranged=ranged)


class FsspecBody:
    """The bytes of one range; a `modelcache.abc.source.Body`."""

    stated: tuple[Digest, ...] = ()

    def __init__(self, source: FsspecSource, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> None:
        self._source = source
        self._file = file
        self._at = span.start
        self._stop = span.stop
        self._asked = source.asked(file)
        self._cancel = Cancellation()
        self._undo = ExitStack()
        self._undo.enter_context(cancel.on_cancel(self._cancel.cancel))
        self._reader: Reader | None = None
        self._block = memoryview(b"")
        self._failure: ModelCacheError | None = None
        self._closed = False

    def begin(self) -> None:
        """Get an instance and the first block. Raises what `Source.open` promises."""
        self._reader = self._source.reader(self._file, self._cancel, self._asked)
        self._fetch()

    def readinto(self, buffer: memoryview) -> int:
        """As `Body.readinto`."""
        if self._failure is not None:
            raise self._failure
        if self._cancel.requested:
            self._failure = Cancelled("cancelled", address=self._asked.address)
            raise self._failure
        if not self._block:
            if self._at == self._stop:
                self._release(well=True)
                return 0
            self._fetch()
        count = min(buffer.nbytes, len(self._block))
        buffer[:count] = self._block[:count]
        self._block = self._block[count:]
        return count

    def close(self) -> None:
        """As `Body.close`."""
        if not self._closed:
            self._closed = True
            self._undo.close()
            self._release(well=self._failure is None and not self._cancel.requested)

    def abort(self) -> None:
        """As `Body.abort`."""
        self._cancel.cancel()

    def _fetch(self) -> None:
        assert self._reader is not None
        span = ByteRange(self._at, min(self._at + BLOCK_BYTES, self._stop))
        try:
            self._block = memoryview(self._source.block(self._reader, span, self._cancel, self._asked))
        except ModelCacheError as error:
            self._failure = error
            self._release(well=False)
            raise
        self._at = span.stop

    def _release(self, *, well: bool) -> None:
        if self._reader is not None:
            reader, self._reader = self._reader, None
            self._source.done(reader, well=well, asked=self._asked)


def _relative(name: str, path: str, uri: StorageUri) -> str:
    """Where a file goes in the snapshot, from the filesystem's names of it and of what was asked for."""
    file, place = name.lstrip("/"), path.strip("/")
    if file == place:
        return (place.removesuffix(f"?{uri.query}") if names_version(uri) else place).rpartition("/")[2]
    if place and not file.startswith(f"{place}/"):
        raise ProtocolViolation("the filesystem lists a file outside of the place", address=str(uri), got=ascii(name))
    return file[len(place) + 1 :] if place else file
