"""What a source is: a place that lists exact versions of files and hands out ranges of their bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

from modelcache.digest import Digest
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.uri import StorageUri


@dataclass(frozen=True, slots=True)
class Origin:
    """The endpoint really spoken to, and the CA that vouches for it when it isn't the system's.

    Two refs with one URI and two origins never share what they resolve to.

    Attributes:
        endpoint: `scheme://host:port` with the port always written, lower case, then the endpoint's own path without a slash at its
            end: what several tenants share a gateway by; `file://` for this machine.
        ca_sha256: hex sha256 of the custom CA bundle's bytes.
        verified: False: whoever answered there was believed without a certificate.
    """

    endpoint: str
    ca_sha256: str | None = None
    verified: bool = True

    def __str__(self) -> str:
        if not self.verified:
            return f"{self.endpoint}#unverified"
        return self.endpoint if self.ca_sha256 is None else f"{self.endpoint}#ca={self.ca_sha256[:16]}"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One exact version of one file at an origin.

    Attributes:
        path: where it goes in the snapshot; relative, checked by `modelcache.paths`.
        size_bytes: exact.
        locator: what the source itself needs to read it (key, URL without secrets, file name). Opaque to others.
        validator: names this version at the origin and is sent as a precondition with every range (strong ETag, version
            id, generation, mtime). Empty: the origin gives none; then the file is read in one request, from the start, and never resumed.
        digests: what the origin states about all bytes of the file; each is compared after a fetch.
        ranged: whether the origin serves ranges of it. False: as with an empty validator, one request for everything.
        stated_later: what the origin states of its bytes comes with them, if all are asked for at once (`Body.stated`): then nothing that
            an earlier try has left of it is gone on with, for it could not be compared.
    """

    path: str
    size_bytes: int
    locator: str
    validator: str
    digests: tuple[Digest, ...] = ()
    ranged: bool = True
    stated_later: bool = False

    @property
    def resumable(self) -> bool:
        """Whether parts of it may be fetched by separate requests."""
        return self.ranged and self.validator != ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source says it has under a URI, as one exact version.

    Attributes:
        uri: the URI as asked; without its digest where the source itself compares that (of an archive).
        origin: who said so.
        revision: the origin's own name of this version (commit, version id), else a digest over paths, sizes and validators.
        immutable: the URI itself names this exact version, so asking again can't give another.
        files: sorted by path; never empty; only those that the URI's patterns select.
        expected: the sha256 of its only file is the asker's word, which the origin does not give.
    """

    uri: StorageUri
    origin: Origin
    revision: str
    immutable: bool
    files: tuple[RemoteFile, ...] = field(repr=False)
    expected: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for item in self.files)


def fingerprint(files: tuple[RemoteFile, ...]) -> str:
    """A name for this set of exact versions, for origins that give none: `listing-` and 32 hex digits."""
    total = hashlib.sha256()
    for item in sorted(files, key=lambda item: item.path):
        total.update(f"{item.path}\0{item.size_bytes}\0{item.validator}\0".encode())
    return f"listing-{total.hexdigest()[:32]}"


class Body(Protocol):
    """The bytes of one range, in order, once. Used by one thread, except `abort`."""

    @property
    def stated(self) -> tuple[Digest, ...]:
        """What the answer that brings a whole file says about all of its bytes, beside what the listing said; of a part, nothing."""
        ...

    def readinto(self, buffer: memoryview) -> int:
        """Put the next bytes at the start of `buffer`; how many, at least 1; 0 only when the whole range was handed out.

        Never hands out a byte beyond the range, nor one of another version of the file. What arrived before a failure is
        handed out first; the next call raises.

        Raises:
            BodyCut: the connection ended early.
            OriginStalled: nothing arrived for the stall time.
            ProtocolViolation: more bytes than promised, or a framing error.
            SourceChanged: the file is no longer this version (where that shows only while reading).
            Cancelled: `abort` was called.
        """
        ...

    def close(self) -> None:
        """Give the connection back (reusable when the range was read to its end). Never raises; idempotent."""
        ...

    def abort(self) -> None:
        """Break a `readinto` that is waiting, from any thread. Never raises; idempotent."""
        ...


class Source(Protocol):
    """One origin, with one credential. Safe for many threads.

    The control plane (`list`) may use the origin's SDK; the bulk plane (`open`) moves bytes into the caller's buffer.
    """

    @property
    def origin(self) -> Origin: ...

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        """Resolve a URI to exact versions.

        Raises:
            NotFound: nothing there, or nothing that the patterns select.
            AccessDenied: 401 or 403.
            UnsafePath: a name that can't be kept in a snapshot.
            Unavailable: unreachable, busy or stalled, after this source's own retries if it has any.
            SourceChanged: it changed again and again while it was listed.
            ProtocolViolation: an answer that makes no sense.
        """
        ...

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """Start reading `span` (not empty) of exactly this version of `file`.

        A file that is not `resumable` is only ever opened at its full range.

        Raises:
            SourceChanged: the precondition failed, or the object is gone (404 after it was listed).
            AccessDenied: 401 or 403, after renewing the credential once.
            Unavailable: unreachable, busy or stalled.
            ProtocolViolation: a 200 in answer to a range, a wrong Content-Range, a Content-Encoding.
        """
        ...

    def close(self) -> None:
        """Close idle connections. Bodies that are open stay usable."""
        ...
