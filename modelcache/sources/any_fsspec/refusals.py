"""What fsspec's filesystems raise, as our errors. Their own text can hold URLs and keys, so only kinds, statuses and numbers are told."""

from __future__ import annotations

import errno
import os
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from modelcache.errors import (
    AccessDenied,
    BodyCut,
    ModelCacheError,
    NotFound,
    OriginBusy,
    OriginStalled,
    OriginUnreachable,
    OriginUntrusted,
    ProtocolViolation,
    SourceChanged,
)
from modelcache.transport import error_of_status

DENIED_NUMBERS = (errno.EACCES, errno.EPERM)
MISSING_NUMBERS = (errno.ENOENT, errno.ENOTDIR)
MAX_CAUSES = 50
_DENIED_KINDS = re.compile(r"Auth|Credential|Logon|AccessDenied|Forbidden", re.IGNORECASE)
"""Of paramiko, smbprotocol, azure-core, oss2 and their like: AuthenticationException, LogonFailure, ClientAuthenticationError, …"""
_STALLED_KINDS = re.compile(r"ReadTimeout|ResponseTimeout")
"""Of requests and azure-core."""
_UNREACHABLE_KINDS = re.compile(r"ServiceRequest|ConnectionError|ConnectTimeout|^RequestError$")
"""Of azure-core, requests, and oss2 (no answer came at all)."""
_CUT_KINDS = re.compile(r"ServiceResponse|IncompleteRead|ClientPayload|InconsistentError")
"""Of azure-core, aiohttp and oss2: an answer ended early, or is not what its checksum says."""
_FTP_REPLY = re.compile(r"([45])(\d)(\d)\b")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call was about. `listed`: the file was listed before, so its absence is a change."""

    scheme: str
    address: str
    listed: bool = False


def error_of(error: Exception, asked: Asked) -> ModelCacheError:
    """Ours for what a filesystem raised."""
    kind = type(error).__name__
    status = _status(error)
    if getattr(error, "error_code", None) == "PublicAccessNotPermitted":  # Azure's, with a 409, to who sends no credential
        return AccessDenied(f"the `{asked.scheme}` filesystem denies access to who has no credential", address=asked.address)
    if status is not None and status >= 400:
        return error_of_status(status, {}, address=asked.address, listed=asked.listed)
    number = error.errno if isinstance(error, OSError) and isinstance(error.errno, int) else None
    if isinstance(error, FileNotFoundError) or number in MISSING_NUMBERS:
        return _missing(asked)
    if isinstance(error, PermissionError) or number in DENIED_NUMBERS or _DENIED_KINDS.search(kind):
        return AccessDenied(f"the `{asked.scheme}` filesystem denies access ({kind})", address=asked.address)
    if type(error).__module__ == "ftplib":
        return _of_ftp(error, asked)
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in _causes(error)):
        return OriginUntrusted(f"the `{asked.scheme}` filesystem's certificate is not vouched for", address=asked.address)
    if isinstance(error, TimeoutError) or _STALLED_KINDS.search(kind):
        return OriginStalled(f"the `{asked.scheme}` filesystem waited in vain ({kind})", address=asked.address)
    if isinstance(error, EOFError) or _CUT_KINDS.search(kind):
        return BodyCut(f"the `{asked.scheme}` filesystem's connection ended ({kind})", address=asked.address)
    if isinstance(error, OSError) or _UNREACHABLE_KINDS.search(kind):
        reason = f"{kind}: {os.strerror(number)}" if number is not None and number > 0 else kind
        return OriginUnreachable(f"the `{asked.scheme}` filesystem could not be reached ({reason})", address=asked.address)
    hint = f"does fsspec itself read it? its arguments are in MODELCACHE_FSSPEC_{asked.scheme.upper()}"
    return ProtocolViolation(f"the `{asked.scheme}` filesystem failed ({kind})", address=asked.address, got=kind, hint=hint)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was made of: by `raise … from`, or as an argument or `reason` (requests, urllib3)."""
    todo, seen = [error], set[int]()
    while todo:
        each = todo.pop()
        if id(each) in seen or len(seen) > MAX_CAUSES:
            continue
        seen.add(id(each))
        yield each
        inner = (each.__cause__, each.__context__, getattr(each, "reason", None), *each.args)
        todo += [one for one in inner if isinstance(one, BaseException)]


def _missing(asked: Asked) -> ModelCacheError:
    if asked.listed:
        return SourceChanged("the file is gone", address=asked.address)
    return NotFound("no such file or directory", address=asked.address)


def _of_ftp(error: Exception, asked: Asked) -> ModelCacheError:
    """RFC 959 §4.2.1: 4yz passes, 5yz doesn't; x3z is about authentication, 550 about the file."""
    found = _FTP_REPLY.match(str(error))
    reply = found.group() if found else type(error).__name__
    if found is None:
        return ProtocolViolation(f"the FTP server's answer makes no sense ({reply})", address=asked.address, got=reply)
    if found[1] == "4":
        return OriginBusy(f"the FTP server can't just now ({reply})", address=asked.address)
    if reply == "550":
        return _missing(asked)
    if found[2] == "3":
        return AccessDenied(f"the FTP server denies access ({reply})", address=asked.address)
    return ProtocolViolation(f"the FTP server refused ({reply})", address=asked.address, got=reply)


def _status(error: Exception) -> int | None:
    """Of an HTTP answer: aiohttp's `status`, azure-core's and oss2's `status_code`, requests' `response.status_code`."""
    for thing in (error, getattr(error, "response", None)):
        for name in ("status", "status_code"):
            value = getattr(thing, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None
