"""Errors as they cross the wire: a status that every gRPC client understands, and our own error beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc

from modelcache.agent.v1 import agent_pb2 as pb
from modelcache.errors import (
    AccessDenied,
    AgentUnreachable,
    BadConfig,
    BadInput,
    Cancelled,
    IntegrityError,
    InUse,
    Missing,
    ModelCacheError,
    NoDeviceMemory,
    NoSpace,
    SourceChanged,
    StoreError,
    Unavailable,
)

KEY = "modelcache-error-bin"
"""Of the trailing metadata that holds an `Error`."""
STATUSES: tuple[tuple[type[ModelCacheError], grpc.StatusCode], ...] = (
    (BadInput, grpc.StatusCode.INVALID_ARGUMENT),
    (Missing, grpc.StatusCode.NOT_FOUND),
    (AccessDenied, grpc.StatusCode.PERMISSION_DENIED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (SourceChanged, grpc.StatusCode.ABORTED),
    (IntegrityError, grpc.StatusCode.DATA_LOSS),
    (NoSpace, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (InUse, grpc.StatusCode.FAILED_PRECONDITION),
    (StoreError, grpc.StatusCode.FAILED_PRECONDITION),
    (Cancelled, grpc.StatusCode.CANCELLED),
)
"""By the first class that fits (docs/agent.md); INTERNAL for the rest."""
COUNTS: dict[type[ModelCacheError], tuple[str, ...]] = {
    NoSpace: ("needed_bytes", "available_bytes", "evictable_bytes", "held_bytes"),
    NoDeviceMemory: ("needed_bytes", "free_bytes"),
}
"""Numbers that an error has besides."""
MAX_ENCODED_BYTES = 3072
MAX_DETAILS = 512
"""Together below 6 KiB on the wire, base64 and percent signs included: of a status with over 8 KiB of metadata gRPC may lose all but
the code (`grpc.max_metadata_size`)."""
INSTALL = "pip install"
"""In hints for who can install where the error was met."""
_LEFT_OUT = "..."
_TEXTS = ("message", "address", "expected", "got", "hint")
_FIELDS = ("address", "expected", "got", "hint", "retry_after_s")


def status_of(error: ModelCacheError) -> grpc.StatusCode:
    return next((status for kind, status in STATUSES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def encoded(error: ModelCacheError) -> bytes:
    """As an `Error` message's bytes, MAX_ENCODED_BYTES at most: the longest texts lose their middles."""
    message = error_message(error)
    while message.ByteSize() > MAX_ENCODED_BYTES:
        longest = max(_TEXTS, key=lambda name: len(getattr(message, name)))
        text = getattr(message, longest)
        setattr(message, longest, shortened(text, len(text) // 2))
    return message.SerializeToString()


def details_of(error: ModelCacheError) -> str:
    """For the status: ASCII, MAX_DETAILS characters at most."""
    return shortened(str(error).encode("ascii", "backslashreplace").decode(), MAX_DETAILS)


def shortened(text: str, length: int) -> str:
    """At most so many characters, without the middle."""
    if len(text) <= length:
        return text
    kept = max(0, length - len(_LEFT_OUT)) // 2
    return text[:kept] + _LEFT_OUT + text[len(text) - kept :]


def error_message(error: ModelCacheError) -> pb.Error:
    fields = {name: value for name in _FIELDS if (value := getattr(error, name)) is not None}
    if INSTALL in str(error.hint):
        fields["hint"] = f"it is the node's agent that lacks it, or its image (`EXTRAS`): {error.hint}"
    counts = {name: getattr(error, name) for name in COUNTS.get(type(error), ())}
    return pb.Error(code=str(error.code), message=error.message, retryable=error.retryable, counts=counts, **fields)


def decoded(data: bytes) -> ModelCacheError:
    """The error that was encoded, of its own class where this version has one of that code."""
    return error_of(pb.Error.FromString(data))


def error_of(told: pb.Error) -> ModelCacheError:
    """As `decoded`."""
    fields = {name: getattr(told, name) for name in _FIELDS if told.HasField(name)}  # type: ignore[arg-type]  # names of fields that are optional
    kind = _KINDS.get(told.code)
    if kind is None:
        return AgentUnreachable(f"the agent tells an error that this version doesn't know ({told.code}): {told.message}", **fields)
    error = kind.__new__(kind, told.message)
    ModelCacheError.__init__(error, told.message, **fields)
    for name in COUNTS.get(kind, ()):
        setattr(error, name, told.counts.get(name, 0))
    return error


def raised(error: grpc.RpcError, socket: str) -> ModelCacheError:
    """What a failed call means to a client."""
    metadata: Iterable[Any] = error.trailing_metadata() or ()  # its stubs know no pairs
    for key, value in metadata:
        if key == KEY:
            return decoded(value)
    if error.code() is grpc.StatusCode.CANCELLED:
        return Cancelled("the call to the agent was cancelled", address=socket)
    said = str(error.details() or error.code())
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # an error of ours would have come beside it
        return BadConfig(f"the agent takes no call of this size ({said})", address=socket)
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return AgentUnreachable("the agent is of a version without this call", address=socket, hint="upgrade the agent of this node")
    return AgentUnreachable(f"the agent can't be reached ({said})", address=socket)


def _kinds(kind: type[ModelCacheError]) -> Iterable[tuple[str, type[ModelCacheError]]]:
    if "code" in vars(kind):
        yield str(kind.code), kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


_KINDS = dict(_kinds(ModelCacheError))
