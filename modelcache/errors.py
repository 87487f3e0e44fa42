"""Every error that modelcache raises, grouped by what its handler does next.

Each concrete error has a stable `code` (part of the public interface, documented in `docs/errors.md`), says whether
trying again can help, and carries the address it is about, both values where two were compared, and the next step.
Messages and fields never hold a secret: addresses are canonical URIs or URLs without userinfo and query.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ErrorCode(StrEnum):
    """Stable names of errors: what scripts, metrics and statuses compare."""

    INVALID_URI = "invalid-uri"
    UNSAFE_PATH = "unsafe-path"
    UNKNOWN_SCHEME = "unknown-scheme"
    AMBIGUOUS_NAME = "ambiguous-name"
    BAD_CONFIG = "bad-config"
    FILE_FAULT = "file-fault"
    NO_SUCH_TENSOR = "no-such-tensor"
    MODULE_MISMATCH = "module-mismatch"
    NOT_FOUND = "not-found"
    NOT_CACHED = "not-cached"
    ACCESS_DENIED = "access-denied"
    ACCESS_UNPROVED = "access-unproved"
    ORIGIN_UNREACHABLE = "origin-unreachable"
    ORIGIN_UNTRUSTED = "origin-untrusted"
    ORIGIN_BUSY = "origin-busy"
    ORIGIN_STALLED = "origin-stalled"
    BODY_CUT = "body-cut"
    SOURCE_CHANGED = "source-changed"
    PROTOCOL_VIOLATION = "protocol-violation"
    BAD_ARCHIVE = "bad-archive"
    BAD_CHECKPOINT = "bad-checkpoint"
    DIGEST_MISMATCH = "digest-mismatch"
    DAMAGED_BLOB = "damaged-blob"
    DAMAGED_RECORD = "damaged-record"
    DAMAGED_EXPORT = "damaged-export"
    NO_SPACE = "no-space"
    STORE_READ_ONLY = "store-read-only"
    STORE_FORMAT = "store-format"
    STORE_OWNER = "store-owner"
    STORE_LOCATION = "store-location"
    STORE_BUSY = "store-busy"
    STORE_FAULT = "store-fault"
    IN_USE = "in-use"
    CANCELLED = "cancelled"


class ModelCacheError(Exception):
    """Root of the tree.

    Attributes:
        code: stable name of the error.
        retryable: whether the same call can succeed later without anybody changing anything.
        message: one sentence that names the thing; no secret in it.
        address: canonical URI, URL without query, or path that the error is about.
        expected, got: both values where two were compared.
        hint: the next step for a person.
        retry_after_s: what the origin asked for (`Retry-After`), in seconds.
    """

    code: ClassVar[ErrorCode]
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        address: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.address = address
        self.expected = expected
        self.got = got
        self.hint = hint if hint is not None else self.default_hint
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        """For pickle and copy: classes whose arguments go by name come back, too."""
        return _restored, (type(self), self.args, dict(self.__dict__))

    def __str__(self) -> str:
        text = self.message
        if self.address is not None and self.address not in text:
            text = f"{text}: {self.address}"
        return text

    def as_dict(self) -> dict[str, object]:
        """The error as plain values, for `--json`, logs and statuses; absent fields are left out."""
        fields: dict[str, object] = {"code": str(self.code), "message": self.message, "retryable": self.retryable}
        for name in ("address", "expected", "got", "hint", "retry_after_s"):
            value = getattr(self, name)
            if value is not None:
                fields[name] = value
        return fields


def _restored(kind: type[ModelCacheError], args: tuple[object, ...], fields: dict[str, object]) -> ModelCacheError:
    """The error of `ModelCacheError.__reduce__`, with every field as it was."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


# -- the caller changes the call ------------------------------------------------------------------------------------


class BadInput(ModelCacheError):
    """What was asked for makes no sense; nothing was touched."""


class InvalidUri(BadInput):
    """The text is not a storage URI; `got` is the bad part of it."""

    code = ErrorCode.INVALID_URI


class UnsafePath(BadInput):
    """A file name that can't be kept inside a snapshot (absolute, `..`, NUL, too long, …)."""

    code = ErrorCode.UNSAFE_PATH
    default_hint = "rename the object at its origin, or leave it out with an exclude pattern"


class UnknownScheme(BadInput):
    """No source serves this scheme in this installation."""

    code = ErrorCode.UNKNOWN_SCHEME


class AmbiguousName(BadInput):
    """A short name, or a URI from several origins, that fits several snapshots; the message lists them."""

    code = ErrorCode.AMBIGUOUS_NAME
    default_hint = "name one of them by its digest, or by more digits of it"


class BadConfig(BadInput):
    """A setting has a value that can't be used; the message names the setting and where it came from."""

    code = ErrorCode.BAD_CONFIG


class FileFault(BadInput):
    """The file of an export or import, or a list of URIs, can't be opened, read or written; the message says why."""

    code = ErrorCode.FILE_FAULT


class NoSuchTensor(BadInput):
    """A name or pattern that no tensor of the checkpoint has."""

    code = ErrorCode.NO_SUCH_TENSOR
    default_hint = "`modelcache inspect` lists the names"


class ModuleMismatch(BadInput):
    """The parameters of a module and the tensors of a checkpoint differ in names or shapes; the message names some."""

    code = ErrorCode.MODULE_MISMATCH
    default_hint = "build the module for this checkpoint, or allow names to differ (strict=False)"


# -- the caller checks the name -------------------------------------------------------------------------------------


class Missing(ModelCacheError):
    """The named thing does not exist where it was looked for."""


class NotFound(Missing):
    """The origin has nothing under this name (404, an empty prefix)."""

    code = ErrorCode.NOT_FOUND
    default_hint = "check the spelling, the revision and the endpoint"


class NotCached(Missing):
    """The store has nothing under this name, and asking the origin was not allowed or not meant."""

    code = ErrorCode.NOT_CACHED
    default_hint = "`modelcache pull URI` fetches it; `modelcache ls` shows what is here"


# -- somebody grants a right ----------------------------------------------------------------------------------------


class AccessDenied(ModelCacheError):
    """The origin refused the credential, or the lack of one (401, 403)."""

    code = ErrorCode.ACCESS_DENIED
    default_hint = "check the credential that this process uses and its right to read these objects"


class AccessUnproved(AccessDenied):
    """A caller of a shared store holds no grant in force, and could not prove its right; whether the bytes are here is not said."""

    code = ErrorCode.ACCESS_UNPROVED
    retryable = True
    default_hint = "ask again when the origin can be reached: what is proved then counts for a while without it"

    def because(self, error: ModelCacheError) -> AccessUnproved:
        """The same with what stood in the way of a proof."""
        return AccessUnproved(f"{self.message}: {error.message}", address=self.address, hint=self.hint, retry_after_s=error.retry_after_s)


# -- the same call works later --------------------------------------------------------------------------------------


class Unavailable(ModelCacheError):
    """The origin could not serve just now; kept chunks make the next try cheaper."""

    retryable = True


class OriginUnreachable(Unavailable):
    """Name resolution, connection or TLS handshake failed."""

    code = ErrorCode.ORIGIN_UNREACHABLE
    default_hint = "check the endpoint, DNS, proxy and CA settings"


class OriginUntrusted(OriginUnreachable):
    """The origin's TLS certificate is not vouched for: trying again gives the same until somebody changes a CA or the certificate."""

    code = ErrorCode.ORIGIN_UNTRUSTED
    retryable = False
    default_hint = "name the CA that signed it (its PEM file) in the settings, or have the certificate replaced"


class OriginBusy(Unavailable):
    """The origin asked to slow down (429, 503) or failed inside (other 5xx); see `retry_after_s`."""

    code = ErrorCode.ORIGIN_BUSY


class OriginStalled(Unavailable):
    """No byte arrived for the stall time, or a deadline passed."""

    code = ErrorCode.ORIGIN_STALLED


class BodyCut(Unavailable):
    """The connection ended before the promised bytes did."""

    code = ErrorCode.BODY_CUT


# -- the caller starts over from the listing ------------------------------------------------------------------------


class SourceChanged(ModelCacheError):
    """The object at the origin is no longer the version that was listed; nothing of two versions was mixed."""

    code = ErrorCode.SOURCE_CHANGED
    retryable = True
    default_hint = "the object was replaced while it was read; pull again to get the new version"


# -- the origin's owner repairs it ----------------------------------------------------------------------------------


class ProtocolViolation(ModelCacheError):
    """The origin's answer breaks its protocol, so its bytes can't be trusted to be the asked-for range."""

    code = ErrorCode.PROTOCOL_VIOLATION
    default_hint = "a proxy or the origin alters the answer; compare with `curl -v -r 0-99 URL`"


class BadArchive(ProtocolViolation):
    """An archive can't be unpacked: damaged, cut off, encrypted, of an unknown kind, or over a limit."""

    code = ErrorCode.BAD_ARCHIVE
    default_hint = "have it packed anew, or keep it as the file that it is: end the URI with `#unpack=false`"


class BadCheckpoint(ProtocolViolation):
    """The files are what their origin has, and no safetensors checkpoint: a header, an index or a size that makes no sense."""

    code = ErrorCode.BAD_CHECKPOINT
    default_hint = "its publisher has to repair it; `sha256sum` of the origin's file tells whether it is that one"


# -- bytes are wrong ------------------------------------------------------------------------------------------------


class IntegrityError(ModelCacheError):
    """Bytes are not what they should be. Never served."""


class DigestMismatch(IntegrityError):
    """A complete fetch has another digest than was stated; fetched twice before this is raised."""

    code = ErrorCode.DIGEST_MISMATCH
    retryable = True
    default_hint = "the bytes were discarded; pull again, or correct the expected digest if the file was re-uploaded"


class DamagedBlob(IntegrityError):
    """A kept blob no longer has the digest that names it."""

    code = ErrorCode.DAMAGED_BLOB
    default_hint = "`modelcache verify --repair` takes it out of service and fetches its damaged chunks again"


class DamagedRecord(IntegrityError):
    """A manifest, ref, lease or chunk table of the store can't be read as what it should be."""

    code = ErrorCode.DAMAGED_RECORD
    default_hint = "`modelcache verify --repair` names what is damaged and writes anew what it can; `modelcache pull URI` does the rest"


class DamagedExport(IntegrityError):
    """An export is cut off, altered, or none at all; nothing of it was kept."""

    code = ErrorCode.DAMAGED_EXPORT
    default_hint = "bring the file again, and compare it with the one that was exported (`sha256sum`)"


# -- somebody makes room --------------------------------------------------------------------------------------------


class NoSpace(ModelCacheError):
    """The bytes can't fit under the limits; refused before the first byte, or stopped with everything given back.

    Attributes:
        needed_bytes: what had to be booked.
        available_bytes: what could be booked without removing anything.
        evictable_bytes: what eviction could have freed.
        held_bytes: what leases and pins hold.
    """

    code = ErrorCode.NO_SPACE
    default_hint = "`modelcache df` shows who holds the space; `modelcache rm`, `unpin` or a larger limit makes room"

    def __init__(
        self,
        message: str,
        *,
        needed_bytes: int,
        available_bytes: int,
        evictable_bytes: int,
        held_bytes: int,
        address: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, address=address, hint=hint)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        self.evictable_bytes = evictable_bytes
        self.held_bytes = held_bytes

    def as_dict(self) -> dict[str, object]:
        return super().as_dict() | {
            "needed_bytes": self.needed_bytes,
            "available_bytes": self.available_bytes,
            "evictable_bytes": self.evictable_bytes,
            "held_bytes": self.held_bytes,
        }


# -- somebody repairs the machine -----------------------------------------------------------------------------------


class StoreError(ModelCacheError):
    """The store's directory can't be used as it stands."""


class StoreReadOnly(StoreError):
    """The store's file system or directory refuses writes."""

    code = ErrorCode.STORE_READ_ONLY
    default_hint = "remount it read-write, or name another root with --root or MODELCACHE_ROOT"


class StoreFormat(StoreError):
    """The directory holds no store, or one of a format that this version does not know."""

    code = ErrorCode.STORE_FORMAT


class StoreOwner(StoreError):
    """The store belongs to another user id."""

    code = ErrorCode.STORE_OWNER
    default_hint = "run as the store's owner, or name another root with --root or MODELCACHE_ROOT"


class StoreLocation(StoreError):
    """The path is no place for a store (inside KServe's model root, a network file system, an unmounted disk)."""

    code = ErrorCode.STORE_LOCATION


class StoreBusy(StoreError):
    """The store lock could not be had within its deadline."""

    code = ErrorCode.STORE_BUSY
    retryable = True


class StoreFault(StoreError):
    """The disk or file system failed (EIO, ESTALE, a vanished directory)."""

    code = ErrorCode.STORE_FAULT
    default_hint = "check the disk: `dmesg`, `df`, `mount`"


# -- the caller waits or releases -----------------------------------------------------------------------------------


class InUse(ModelCacheError):
    """A lease or a pin holds the snapshot; the message names the holders."""

    code = ErrorCode.IN_USE
    default_hint = "stop its users or `modelcache unpin URI`, then try again"


class Cancelled(ModelCacheError):
    """The caller withdrew the request; verified chunks are kept for the next one."""

    code = ErrorCode.CANCELLED
    retryable = True
