"""Errors of the bytes and the disk: damage, no room, a directory that can't be used."""

from __future__ import annotations

from modelcache.errors.base import ModelCacheError
from modelcache.errors.code import ErrorCode

# -- bytes are wrong --------------------------------------------------------------------------------------------------


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


# -- somebody makes room ----------------------------------------------------------------------------------------------


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


# -- somebody repairs the machine -------------------------------------------------------------------------------------


class StoreError(ModelCacheError):
    """The store's directory can't be used as it stands."""


class StoreReadOnly(StoreError):
    """The store's file system or directory refuses writes."""

    code = ErrorCode.STORE_READ_ONLY
    default_hint = "let this user write there (its mode, or a read-only mount), or name another root with --root or MODELCACHE_ROOT"


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
