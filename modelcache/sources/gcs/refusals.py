"""What the store and google-auth refuse, as our errors; no token in them."""

from __future__ import annotations

import json
import re

from modelcache.errors import AccessDenied, BadConfig, ModelCacheError, NotFound, OriginBusy, OriginUnreachable
from modelcache.transport import Response, error_of_status

SAID_CHARACTERS = 400
NO_CREDENTIAL = (
    "no Google credential was found, so none was sent: set GOOGLE_APPLICATION_CREDENTIALS or run `gcloud auth application-default login`"
)
_TOKEN = re.compile(r"\bya29\.[\w.-]+|\beyJ[\w-]+\.[\w.-]+|\bBearer\s+\S+", re.IGNORECASE)
"""Google's access tokens, JSON web tokens, and whatever is called one."""
_OAUTH_ERROR = re.compile(r"[a-z_]{3,40}")


def error_of_answer(answer: Response, *, address: str, what: str, credential_found: bool) -> ModelCacheError:
    """What a control answer other than 200 means.

    Args:
        what: is absent if the status is 404, such as `the bucket`.
        credential_found: whether one was sent.
    """
    said = redacted(_message(answer.body))
    if answer.status == 404:
        return NotFound(f"{what} does not exist", address=address)
    if answer.status == 400 and "requester pays" in said.lower():
        return AccessDenied(
            f"the store denies access: {said}", address=address, hint="requester-pays buckets are read only by their owner here"
        )
    error = error_of_status(answer.status, answer.headers, address=address, listed=False, code=answer.code)
    if isinstance(error, AccessDenied):
        detail = f": {said}" if said else ""
        return denied(
            f"the store denies access ({answer.status}, {answer.code or 'no code'}){detail}", address, credential_found=credential_found
        )
    return error


def denied(message: str, address: str, *, credential_found: bool) -> AccessDenied:
    hint = "check the credential's right to list the bucket and to read its objects" if credential_found else NO_CREDENTIAL
    return AccessDenied(message, address=address, hint=hint)


def error_of_auth(error: Exception, *, address: str, cause: ModelCacheError | None) -> ModelCacheError:
    """What a failure of google-auth means. Its own text can quote requests and files, so only its kind and OAuth's code are told.

    Args:
        cause: what our transport last raised while google-auth asked for a token.
    """
    from google.auth import exceptions

    kind = type(error).__name__
    if isinstance(error, exceptions.TransportError):
        because = f": {cause}" if cause is not None else ""
        return OriginUnreachable(f"the service that gives out Google tokens could not be reached ({kind}){because}", address=address)
    if isinstance(error, exceptions.RefreshError):
        first = str(error.args[0]).partition(":")[0] if error.args else ""
        code = first if _OAUTH_ERROR.fullmatch(first) else kind
        if error.retryable:
            return OriginBusy(f"the service that gives out Google tokens is busy ({code})", address=address)
        hint = "the key is revoked, its account gone, or the clock wrong; `gcloud auth application-default login` makes a new one"
        return AccessDenied(f"no Google token was given ({code})", address=address, hint=hint)
    hint = "check the file that GOOGLE_APPLICATION_CREDENTIALS or MODELCACHE_GS_CREDENTIALS_FILE names"
    if isinstance(error, OSError):
        return BadConfig(f"the Google credential can't be read ({error.strerror or kind})", address=address, hint=hint)
    return BadConfig(f"the Google credential can't be used ({kind})", address=address, hint=hint)


def redacted(text: str) -> str:
    """A store's own words, one line, bounded, without anything that looks like a token."""
    return _TOKEN.sub("***", " ".join(text.split())).encode("ascii", "backslashreplace").decode()[:SAID_CHARACTERS]


def _message(body: bytes) -> str:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    error = fields.get("error") if isinstance(fields, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else ""
