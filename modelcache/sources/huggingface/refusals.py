"""What the hub's refusals mean: its status, `X-Error-Code` and `X-Error-Message`.

The codes are those that huggingface_hub tells apart (`utils/_http.py`, `hf_raise_for_status`, 2.4.0). To whom may not see a private
repository the hub says the same as of one that does not exist.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from modelcache.errors import AccessDenied, ModelCacheError, NotFound, OriginBusy, SourceChanged
from modelcache.transport import Response, error_of_status, retry_after_s

UNKNOWN_LOGIN = "Invalid credentials in Authorization header"
UNKNOWN_LOGIN_HINT = "it is wrong, revoked or expired: `hf auth whoami` renews a login of the browser, `hf auth login` makes a new one"
DISABLED = "Access to this resource is disabled."
LOGIN_HINT = "sign in with `hf auth login`, or set HF_TOKEN to a token that may read this repository"

SAID_CHARACTERS = 300
_TOKEN_LIKE = re.compile(r"\b(?:hf|api)_\w+|\b[\w.-]{40,}")
_RATE_LIMIT = re.compile(r'"[^"]{1,64}"\s*;\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,6})')
"""draft-ietf-httpapi-ratelimit-headers-09: of this kind of request none is left, for so many seconds."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request was about, for its errors.

    Attributes:
        repo_url: the repository's page.
        listed: the file was listed before, so its absence is a change.
    """

    repo: str
    revision: str
    address: str
    repo_url: str
    signed_in: bool
    listed: bool


def error_of(answer: Response, asked: Asked) -> ModelCacheError:
    """The error that an answer other than the hoped-for one means."""
    code = answer.headers.get("x-error-code", "")
    said = f"{answer.status}, {code}" if re.fullmatch(r"[A-Za-z]{1,64}", code) else str(answer.status)
    if answer.status in (401, 403):
        return _denied(answer, asked, code, said)
    if code == "RepoNotFound" and not asked.listed:
        hint = "check the spelling; a private repository that this credential may not see looks the same"
        return NotFound(f"the hub has no repository `{asked.repo}` ({said})", address=asked.address, hint=hint)
    if code == "RevisionNotFound" and not asked.listed:
        return NotFound(f"`{asked.repo}` has no revision `{asked.revision}` ({said})", address=asked.address)
    if answer.status in (404, 410):
        if asked.listed:
            hint = "the repository's history was rewritten, or it was removed; pull again to get what is there now"
            return SourceChanged(f"the file is gone from the hub ({said})", address=asked.address, hint=hint)
        return NotFound(f"nothing of this name in `{asked.repo}` at `{asked.revision}` ({said})", address=asked.address)
    if answer.status == 429:
        return OriginBusy(
            f"the hub's rate limit is reached ({said})", address=asked.address, hint=_busy_hint(asked), retry_after_s=_pause_s(answer)
        )
    return error_of_status(answer.status, answer.headers, address=asked.address, listed=asked.listed)


def _denied(answer: Response, asked: Asked, code: str, said: str) -> AccessDenied:
    if code == "GatedRepo":
        first = "ask for access, or accept its terms," if asked.signed_in else f"{LOGIN_HINT}; accept its terms"
        return AccessDenied(
            f"`{asked.repo}` is gated and this credential was not let in ({said})",
            address=asked.address,
            hint=f"{first} at {asked.repo_url}",
        )
    message = answer.headers.get("x-error-message", "")
    if message == DISABLED:
        return AccessDenied(
            f"the hub has disabled `{asked.repo}` ({said})", address=asked.address, hint=f"its page may say why: {asked.repo_url}"
        )
    if message == UNKNOWN_LOGIN:
        return AccessDenied(
            f"the hub does not accept the token ({said})",
            address=asked.address,
            hint=UNKNOWN_LOGIN_HINT,
        )
    if code == "RepoNotFound" or (answer.status == 401 and not asked.signed_in):
        hint = f"check the spelling; if it is private, {LOGIN_HINT}"
        return AccessDenied(f"`{asked.repo}` does not exist, or is private ({said})", address=asked.address, hint=hint)
    return AccessDenied(f"the hub refused ({said}){_own_words(message)}", address=asked.address, hint=LOGIN_HINT)


def _own_words(message: str) -> str:
    """What the hub says of a refusal without code (which right a token lacks, for one): one line, bounded, nothing like a token."""
    words = _TOKEN_LIKE.sub("***", " ".join(message.split()))
    return f": {words.encode('ascii', 'backslashreplace').decode()[:SAID_CHARACTERS]}" if words else ""


def _busy_hint(asked: Asked) -> str | None:
    return None if asked.signed_in else "signed-in users may ask more often: `hf auth login`, or HF_TOKEN"


def _pause_s(answer: Response) -> float | None:
    """What the hub asks for: `Retry-After`, else the end of the window that its `RateLimit` names."""
    asked_s = retry_after_s(answer.headers)
    if asked_s is not None:
        return asked_s
    window = _RATE_LIMIT.search(answer.headers.get("ratelimit", ""))
    return None if window is None else float(window.group(1))
