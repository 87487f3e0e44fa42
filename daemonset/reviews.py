"""Who may see what names models: the cluster's own word, by TokenReview and SubjectAccessReview."""

from __future__ import annotations

import hmac
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from modelcache.errors import AgentBusy
from modelcache.patience import Cancellation

TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"  # noqa: S105 - a path
ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
TTL_S = {True: 30.0, False: 5.0}
"""How long a yes and a no are believed: a token that is withdrawn is refused after half a minute."""
KEPT = 256
"""Answers in memory; the oldest goes."""
AT_ONCE = 4
"""Reviews under way; who comes then is told to come again, so that strangers' tokens are no load on the API server."""
DEADLINE_S = 10.0
MAX_TOKEN_CHARACTERS = 16_384


class Verdict(Enum):
    """What is known of who asks."""

    ALLOWED = "allowed"
    FORBIDDEN = "forbidden"
    UNKNOWN = "unknown"
    """The token is nobody's."""


class Reviewer(Protocol):
    """The API server. Raises ModelCacheError: no answer."""

    def post(self, path: str, body: dict[str, Any], cancel: Cancellation) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class _Known:
    verdict: Verdict
    until_s: float


class Reviews:
    """Asks the API server, and remembers the answers for a while. Thread-safe."""

    def __init__(self, server: Reviewer, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._key = os.urandom(32)
        self._free = threading.BoundedSemaphore(AT_ONCE)

    def verdict(self, token: str, path: str) -> Verdict:
        """Whether the holder of this token may `get` this non-resource path.

        Raises:
            AgentBusy: too many ask at once.
            ModelCacheError: the API server gave no answer within DEADLINE_S; nothing is remembered.
        """
        if not token or len(token) > MAX_TOKEN_CHARACTERS:
            return Verdict.UNKNOWN
        key = hmac.digest(self._key, f"{path}\n{token}".encode(), "sha256")
        with self._lock:
            known = self._known.get(key)
            if known is not None and self._clock() < known.until_s:
                return known.verdict
        if not self._free.acquire(blocking=False):
            raise AgentBusy("as many reviews of tokens as are asked for at once are under way", retry_after_s=1.0)
        try:
            found = self._asked(token, path)
        finally:
            self._free.release()
        self._remember(key, found)
        return found

    def _asked(self, token: str, path: str) -> Verdict:
        cancel = Cancellation()
        ending = threading.Timer(DEADLINE_S, cancel.cancel)
        ending.daemon = True
        ending.start()
        try:
            who = self._review(TOKEN_REVIEWS, {"token": token}, cancel)
            user = who.get("user")
            if who.get("authenticated") is not True or not isinstance(user, dict) or not user.get("username"):
                return Verdict.UNKNOWN
            asks = {
                "user": user["username"],
                "groups": user.get("groups") or [],
                "uid": user.get("uid", ""),
                "extra": user.get("extra") or {},
            }
            said = self._review(ACCESS_REVIEWS, {**asks, "nonResourceAttributes": {"path": path, "verb": "get"}}, cancel)
            return Verdict.ALLOWED if said.get("allowed") is True and said.get("denied") is not True else Verdict.FORBIDDEN
        finally:
            ending.cancel()

    def _review(self, path: str, spec: dict[str, Any], cancel: Cancellation) -> dict[str, Any]:
        group, version, kind = path.split("/")[2:]
        body = {"apiVersion": f"{group}/{version}", "kind": _KINDS[kind], "spec": spec}
        status = self._server.post(path, body, cancel).get("status")
        return status if isinstance(status, dict) else {}

    def _remember(self, key: bytes, found: Verdict) -> None:
        with self._lock:
            self._known[key] = _Known(found, self._clock() + TTL_S[found is Verdict.ALLOWED])
            self._known.move_to_end(key)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)


_KINDS = {"tokenreviews": "TokenReview", "subjectaccessreviews": "SubjectAccessReview"}
Admit = Callable[[str | None, str], Verdict]
"""Whether who sent this `Authorization` header may get this path. Raises ModelCacheError: nobody can say."""


def by(reviews: Reviews) -> Admit:
    """Of bearer tokens alone."""

    def admit(header: str | None, path: str) -> Verdict:
        scheme, _, token = (header or "").strip().partition(" ")
        return reviews.verdict(token.strip(), path) if scheme.lower() == "bearer" else Verdict.UNKNOWN

    return admit


def everybody(header: str | None, path: str) -> Verdict:
    """On a socket that its owner alone can open."""
    return Verdict.ALLOWED


def nobody(header: str | None, path: str) -> Verdict:
    """Without a cluster that could tell."""
    return Verdict.FORBIDDEN
