"""Exit codes: one per group of errors, so that a script can decide what to do next. Documented in `docs/cli.md`."""

from __future__ import annotations

from enum import IntEnum

from modelcache import errors


class ExitCode(IntEnum):
    """What a command ends with. Codes are part of the public interface: none changes its meaning."""

    OK = 0
    UNEXPECTED = 1
    """A defect of modelcache or of the machine; nothing that a caller can plan for."""
    USAGE = 2
    MISSING = 3
    ACCESS_DENIED = 4
    UNAVAILABLE = 5
    """The same command works later."""
    INTEGRITY = 6
    NO_ROOM = 7
    STORE = 8
    """The store, or for `doctor` the machine, has to be repaired first."""
    IN_USE = 9
    ORIGIN = 10
    """The origin changed under the fetch, or breaks its protocol."""
    PARTLY = 11
    """Of several models some failed, or all; each one's error was told."""
    CANCELLED = 130
    """128 + SIGINT, as shells report it; also for SIGTERM."""
    READER_GONE = 141
    """128 + SIGPIPE: whoever read the output closed it."""


GROUPS: dict[type[errors.ModelCacheError], ExitCode] = {
    errors.BadInput: ExitCode.USAGE,
    errors.Missing: ExitCode.MISSING,
    errors.AccessDenied: ExitCode.ACCESS_DENIED,
    errors.Unavailable: ExitCode.UNAVAILABLE,
    errors.GroupBroken: ExitCode.UNAVAILABLE,
    errors.IntegrityError: ExitCode.INTEGRITY,
    errors.NoSpace: ExitCode.NO_ROOM,
    errors.NoDeviceMemory: ExitCode.NO_ROOM,
    errors.StoreError: ExitCode.STORE,
    errors.DeviceFault: ExitCode.STORE,
    errors.InUse: ExitCode.IN_USE,
    errors.SourceChanged: ExitCode.ORIGIN,
    errors.ProtocolViolation: ExitCode.ORIGIN,
    errors.Cancelled: ExitCode.CANCELLED,
}
"""The one place that maps errors to exit codes."""


def group_of(kind: type[errors.ModelCacheError]) -> type[errors.ModelCacheError] | None:
    """The base of `GROUPS` that an error class belongs to; None if nobody placed it."""
    return next((base for base in kind.__mro__ if base in GROUPS), None)


def exit_code_of(error: BaseException) -> ExitCode:
    """What a command that fails with `error` exits with."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.CANCELLED
    group = group_of(type(error)) if isinstance(error, errors.ModelCacheError) else None
    return GROUPS[group] if group is not None else ExitCode.UNEXPECTED
