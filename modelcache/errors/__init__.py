"""Every error that modelcache raises, grouped by what its handler does next.

Each concrete error has a stable `code` (part of the public interface, documented in `docs/errors.md`), says whether
trying again can help, and carries the address it is about, both values where two were compared, and the next step.
The classes are in the module of whoever has to do something about them: `caller`, `origin`, `store`, `device`.
Messages and fields never hold a secret: addresses are canonical URIs or URLs without userinfo and query.
"""

from __future__ import annotations

from modelcache.errors.agent import AgentBusy, AgentDraining, AgentUnreachable
from modelcache.errors.base import ModelCacheError
from modelcache.errors.caller import (
    AmbiguousName,
    BadConfig,
    BadInput,
    BadShard,
    Cancelled,
    FileFault,
    GroupBroken,
    InUse,
    InvalidUri,
    Missing,
    ModuleMismatch,
    NoSuchDevice,
    NoSuchTensor,
    NotCached,
    NotFound,
    NotInstalled,
    UnknownScheme,
    UnsafePath,
)
from modelcache.errors.code import ErrorCode
from modelcache.errors.device import DeviceFault, NoDeviceMemory
from modelcache.errors.origin import (
    AccessDenied,
    AccessUnproved,
    AddressRefused,
    BadArchive,
    BadCheckpoint,
    BodyCut,
    OriginBusy,
    OriginStalled,
    OriginUnreachable,
    OriginUntrusted,
    ProtocolViolation,
    SourceChanged,
    Unavailable,
)
from modelcache.errors.store import (
    DamagedBlob,
    DamagedExport,
    DamagedRecord,
    DigestMismatch,
    IntegrityError,
    NoSpace,
    StoreBusy,
    StoreError,
    StoreFault,
    StoreFormat,
    StoreLocation,
    StoreOwner,
    StoreReadOnly,
)

__all__ = [
    "AccessDenied",
    "AccessUnproved",
    "AddressRefused",
    "AgentBusy",
    "AgentDraining",
    "AgentUnreachable",
    "AmbiguousName",
    "BadArchive",
    "BadCheckpoint",
    "BadConfig",
    "BadInput",
    "BadShard",
    "BodyCut",
    "Cancelled",
    "DamagedBlob",
    "DamagedExport",
    "DamagedRecord",
    "DeviceFault",
    "DigestMismatch",
    "ErrorCode",
    "FileFault",
    "GroupBroken",
    "InUse",
    "IntegrityError",
    "InvalidUri",
    "Missing",
    "ModelCacheError",
    "ModuleMismatch",
    "NoDeviceMemory",
    "NoSpace",
    "NoSuchDevice",
    "NoSuchTensor",
    "NotCached",
    "NotFound",
    "NotInstalled",
    "OriginBusy",
    "OriginStalled",
    "OriginUnreachable",
    "OriginUntrusted",
    "ProtocolViolation",
    "SourceChanged",
    "StoreBusy",
    "StoreError",
    "StoreFault",
    "StoreFormat",
    "StoreLocation",
    "StoreOwner",
    "StoreReadOnly",
    "Unavailable",
    "UnknownScheme",
    "UnsafePath",
]
