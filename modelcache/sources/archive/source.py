"""A source around a source: a place that is one archive is listed as what is in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from modelcache.abc.source import Body, Listing, Origin, RemoteFile, Source, fingerprint
from modelcache.digest import Algorithm, Digest
from modelcache.errors import BadArchive, Cancelled, ModelCacheError, NotFound, SourceChanged, UnsafePath
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.archive.limits import ArchiveLimits
from modelcache.sources.archive.members import ArchiveBytes, Bytes, Entry, selected_files
from modelcache.sources.archive.packing import entries_of
from modelcache.sources.archive.streams import Inflated, skip
from modelcache.units import KIB
from modelcache.uri import StorageUri

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
"""What KServe's storage initializer unpacks. Letter case doesn't count."""
MEMBER = "member of "
"""Validators of members begin so; the digest of their archive follows."""
READ_BYTES = 256 * KIB
"""Most that one `readinto` hands out: what is expanded at once is one allocation."""


class Archive(ArchiveBytes, Protocol):
    """The bytes of an archive, and their sha256."""

    @property
    def sha256(self) -> Digest | None: ...


def is_archive_name(path: str) -> bool:
    return path.lower().endswith(SUFFIXES)


@dataclass(frozen=True)
class _Open:
    """An archive at hand, and what was found in it."""

    revision: str
    archive: Archive
    entries: Mapping[str, Entry]

    @property
    def validator(self) -> str:
        return f"{MEMBER}{self.archive.sha256}"


class ArchiveSource:
    """Lists the members of an archive as files; other places as the wrapped source does. Safe for many threads.

    A place is an archive if it is exactly one file with a name that ends with one of `SUFFIXES`. Where the URI itself ends so, its
    patterns select members, else files of the place. The archive is brought in whole before its members can be listed, and
    their versions are named by its digest: no other bytes can be meant.

    A listing that was remembered from an earlier time needs no archive; a file of it that is to be read after all has `SourceChanged`,
    and the next `list` brings the archive.
    """

    def __init__(
        self,
        source: Source,
        bring: Callable[[Listing, Cancellation], Archive],
        remembered: Callable[[str, Listing, Cancellation], tuple[RemoteFile, ...] | None],
        limits: ArchiveLimits,
    ) -> None:
        """
        Args:
            bring: has the one file of a listing at hand, complete and compared with all that is stated of it. It stays until the
                next call of `bring` or the end of this source's use.
            remembered: the files that this URI was resolved to before, if it was at this revision, all of them are here and whoever asks
                may have the archive of this listing.
        """
        self._source = source
        self._bring = bring
        self._remembered = remembered
        self._limits = limits
        self._lock = threading.Lock()
        self._open: _Open | None = None
        self._remembers: str | None = None
        self._given: frozenset[str] = frozenset()

    @property
    def origin(self) -> Origin:
        return self._source.origin

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        """As `Source.list`. The listing's URI has no digest where it is the archive's: `bring` compares that.

        Raises also:
            BadArchive: it can't be read as an archive, or passes a limit.
            What `bring` raises.
        """
        found, is_archive = look_for_archive(self._source, uri, cancel)
        if not is_archive:
            return self._passed_on(found)
        revision = f"unpacked-{fingerprint(found.files).removeprefix('listing-')}"
        named = bool(found.files[0].validator)
        with as_asked(uri):
            files = self._remembered(revision, replace(found, uri=plain(uri)), cancel) if named else None
        if files is not None and not (files and all(file.validator.startswith(MEMBER) for file in files)):
            files = None  # of a ref that lost its validators: only the archive says whose members these are
        self._given = frozenset()
        self._remembers = None if files is None else files[0].validator
        if files is None:
            files = self._listed(uri, found, revision if named else "", cancel)
        return Listing(replace(uri, digest=None), found.origin, revision, found.immutable, files)

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """As `Source.open`, of a file of the last listing. Raises SourceChanged for others: their locators may mean anything."""
        cancel.check()
        if self._is_passed_on(file):
            return self._source.open(file, span, cancel)
        return MemberBody(self._entry(file), file, span, cancel)

    def close(self) -> None:
        """As `Source.close`."""
        self._source.close()

    def vouches_for(self, file: RemoteFile) -> bool:
        """Whether this is a member of the archive that was brought, or remembered; False of what the wrapped source listed.

        Raises:
            SourceChanged: it is neither.
        """
        return not self._is_passed_on(file) and (file.validator == self._remembers or self._entry(file) is not None)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _passed_on(self, listing: Listing) -> Listing:
        """What the wrapped source listed, and nothing else, may be read from it."""
        self._remembers = None
        self._given = frozenset(file.locator for file in listing.files)
        return listing

    def _is_passed_on(self, file: RemoteFile) -> bool:
        return file.locator in self._given

    def _entry(self, file: RemoteFile) -> Entry:
        with self._lock:
            opened = self._open
        entry = None if opened is None or file.validator != opened.validator else opened.entries.get(file.path)
        if entry is None:
            raise SourceChanged("this version of the archive is not at hand", address=file.locator)
        return entry

    def _listed(self, uri: StorageUri, found: Listing, revision: str, cancel: Cancellation) -> tuple[RemoteFile, ...]:
        with self._lock:
            opened = self._open
        if opened is None or opened.revision != revision or not revision:
            with as_asked(uri):
                archive = self._bring(replace(found, uri=plain(uri)), cancel)
            selects = uri.selects if is_archive_name(uri.path) else lambda path: True
            packed = entries_of(archive, found.files[0].path, self._limits, cancel, address=str(uri))
            entries = selected_files(packed, selects, address=str(uri))
            if not entries:
                raise NotFound("no file in the archive that the patterns select", address=str(uri))
            self._limits.check_bytes(sum(entry.size_bytes for entry in entries.values()), archive.size_bytes, str(uri))  # links count
            opened = _Open(revision, archive, entries)
            with self._lock:
                self._open = opened
        at = found.files[0].locator
        return tuple(
            RemoteFile(path, entry.size_bytes, f"{at}!/{path}", opened.validator, _stated(entry), entry.ranged)
            for path, entry in sorted(opened.entries.items())
        )


class MemberBody:
    """The bytes of one range of a member; a `modelcache.abc.source.Body`."""

    stated: tuple[Digest, ...] = ()

    def __init__(self, entry: Entry, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> None:
        self._entry = entry
        self._file = file
        self._span = span
        self._cancel = cancel
        self._left = span.size_bytes
        self._stream: Bytes | None = None
        self._aborted = False

    def readinto(self, buffer: memoryview) -> int:
        if self._aborted or self._cancel.requested:
            raise Cancelled("cancelled", address=self._file.locator)
        if self._stream is None:
            self._stream = self._begun()
        data = self._stream.read(min(buffer.nbytes, self._left, READ_BYTES)) if self._left else b""
        if not data and self._left:
            raise BadArchive(f"{self._file.path!a} ends {self._left} bytes before its size", address=self._file.locator)
        buffer[: len(data)] = data
        self._left -= len(data)
        if self._left == 0 and data:
            self._check_end(self._stream)
        return len(data)

    def close(self) -> None:
        self._stream = None

    def abort(self) -> None:
        self._aborted = True

    def _begun(self) -> Bytes:
        if self._entry.start is None:
            raise AssertionError(f"{self._file.path!a} is no file")
        if self._entry.ranged:
            return self._entry.start(self._span.start)
        stream = self._entry.start(0)
        skip(stream, self._span.start)
        return stream

    def _check_end(self, stream: Bytes) -> None:
        """Of what is packed by itself, that nothing follows."""
        if not isinstance(stream, Inflated) or stream.gzip or self._span.stop < self._file.size_bytes:
            return
        if stream.read(1) or stream.input_left_bytes:
            raise BadArchive(f"{self._file.path!a} goes on behind its size", address=self._file.locator)


def look_for_archive(source: Source, uri: StorageUri, cancel: Cancellation) -> tuple[Listing, bool]:
    """What a source lists, and whether it is one archive: then that alone, patterns aside if they select members."""
    named = is_archive_name(uri.path)
    try:
        with as_asked(uri):
            found = source.list(plain(uri) if named else uri, cancel)
    except UnsafePath:  # a directory with this name and a file that the patterns may leave out
        if not named:
            raise
        named = False
        found = source.list(uri, cancel)
    if len(found.files) == 1 and is_archive_name(found.files[0].path):
        return found, True
    return source.list(uri, cancel) if named and plain(uri) != uri else found, False


def plain(uri: StorageUri) -> StorageUri:
    """The archive as the file that it is."""
    return replace(uri, include=(), exclude=(), digest=None, unpack=False)


@contextmanager
def as_asked(uri: StorageUri) -> Iterator[None]:
    """What goes wrong in the block with the archive as a file is told of the URI that was asked for: nobody typed the other one."""
    try:
        yield
    except ModelCacheError as error:
        ours = str(plain(uri))
        error.message = error.message.replace(ours, str(uri))
        error.address = None if error.address is None else error.address.replace(ours, str(uri))
        raise


def _stated(entry: Entry) -> tuple[Digest, ...]:
    return () if entry.crc32 is None else (Digest(Algorithm.CRC32, f"{entry.crc32:08x}"),)
