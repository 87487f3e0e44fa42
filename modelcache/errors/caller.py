"""Errors that the caller does something about: another call, another name, a release."""

from __future__ import annotations

from modelcache.errors.base import ModelCacheError
from modelcache.errors.code import ErrorCode

# -- the caller changes the call --------------------------------------------------------------------------------------


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
    """A file of an export, an import or a checkpoint, a list of URIs, or stdout can't be opened, read or written; the message says why."""

    code = ErrorCode.FILE_FAULT


class NotInstalled(BadInput, ImportError):
    """A package that only some need is not installed; the hint names what brings it. Also an ImportError, as Python's own would be."""

    code = ErrorCode.NOT_INSTALLED

    @classmethod
    def needed_for(cls, what: str, error: ImportError, install: str) -> NotInstalled:
        """
        Args:
            what: needs it, or takes it: with that verb.
            error: of importing it.
            install: what pip installs.
        """
        package = (error.name or "a package").partition(".")[0]
        found = cls(f"{what} {package}, which is not installed", hint=f"pip install '{install}'")
        found.name = error.name
        return found


class NoSuchTensor(BadInput):
    """A name or pattern that no tensor of the checkpoint has."""

    code = ErrorCode.NO_SUCH_TENSOR
    default_hint = "`modelcache inspect` lists the names"


class ModuleMismatch(BadInput):
    """The parameters of a module and the tensors of a checkpoint differ in names or shapes; the message names some."""

    code = ErrorCode.MODULE_MISMATCH
    default_hint = "build the module for this checkpoint, or allow names to differ (strict=False)"


class BadShard(BadInput):
    """A part of a model that can't be had so: a tensor that doesn't split, or ranks of a group that ask for different things."""

    code = ErrorCode.BAD_SHARD
    default_hint = "give every rank the same model, plan, names and devices, and split along dimensions that the ranks divide"


class NoSuchDevice(BadInput):
    """The tensors were asked for on a device that this machine, or the installed torch, doesn't have."""

    code = ErrorCode.NO_SUCH_DEVICE


# -- the caller checks the name ---------------------------------------------------------------------------------------


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


# -- the caller waits or releases -------------------------------------------------------------------------------------


class InUse(ModelCacheError):
    """A lease or a pin holds the snapshot; the message names the holders."""

    code = ErrorCode.IN_USE
    default_hint = "stop its users or `modelcache unpin URI`, then try again"


class Cancelled(ModelCacheError):
    """The caller withdrew the request; verified chunks are kept for the next one."""

    code = ErrorCode.CANCELLED
    retryable = True


class GroupBroken(ModelCacheError):
    """A rank of a group that reads together died, left, never came or stood still; the message says which."""

    code = ErrorCode.GROUP_BROKEN
    retryable = True
    default_hint = "see why that rank ended, and start all ranks again; nothing is left to clean up"
