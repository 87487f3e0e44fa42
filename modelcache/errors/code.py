"""The names of errors that scripts, metrics and statuses compare."""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """Stable names of errors; documented in `docs/errors.md`."""

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
