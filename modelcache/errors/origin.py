"""Errors of an origin: a right that is missing, an answer that is late, changed or broken."""

from __future__ import annotations

from modelcache.errors.base import ModelCacheError
from modelcache.errors.code import ErrorCode

# -- somebody grants a right ------------------------------------------------------------------------------------------


class AccessDenied(ModelCacheError):
    """The origin refused the credential, or the lack of one (401, 403)."""

    code = ErrorCode.ACCESS_DENIED
    default_hint = "check the credential that this process uses and its right to read these objects"


class AddressRefused(AccessDenied):
    """A caller's URI, a name in it or a redirect leads into a network where no caller's may lead."""

    code = ErrorCode.ADDRESS_REFUSED
    default_hint = "name another origin, or have the administrator take the network out of `permission.refused_networks`"


class AccessUnproved(AccessDenied):
    """A caller of a shared store holds no grant in force, and could not prove its right; whether the bytes are here is not said."""

    code = ErrorCode.ACCESS_UNPROVED
    retryable = True
    default_hint = "ask again when the origin can be reached: what is proved then counts for a while without it"

    def because(self, error: ModelCacheError) -> AccessUnproved:
        """The same with what stood in the way of a proof."""
        return AccessUnproved(f"{self.message}: {error.message}", address=self.address, hint=self.hint, retry_after_s=error.retry_after_s)


# -- the same call works later ----------------------------------------------------------------------------------------


class Unavailable(ModelCacheError):
    """The origin could not serve just now; kept chunks make the next try cheaper."""

    retryable = True


class OriginUnreachable(Unavailable):
    """Name resolution, connection or TLS handshake failed."""

    code = ErrorCode.ORIGIN_UNREACHABLE
    default_hint = "check the endpoint, DNS, proxy and CA settings"


class OriginUntrusted(OriginUnreachable):
    """The origin's TLS certificate is not vouched for, or its SSH host key is not known: trying again gives the same until somebody
    changes that."""

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


# -- the caller starts over from the listing --------------------------------------------------------------------------


class SourceChanged(ModelCacheError):
    """The object at the origin is no longer the version that was listed; nothing of two versions was mixed."""

    code = ErrorCode.SOURCE_CHANGED
    retryable = True
    default_hint = "the object was replaced while it was read; pull again to get the new version"


# -- the origin's owner repairs it ------------------------------------------------------------------------------------


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
