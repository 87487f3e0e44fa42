"""Requests for objects' bytes, each with the token of its moment."""

from __future__ import annotations

from collections.abc import Mapping

from modelcache.sources.gcs.locator import ObjectName
from modelcache.sources.gcs.tokens import Tokens
from modelcache.transport import SignedRequest


class GcsSigner:
    """The signer of one endpoint and identity (`modelcache.transport.Signer`). Safe for many threads."""

    def __init__(self, base_url: str, tokens: Tokens) -> None:
        self._base_url = base_url
        self._tokens = tokens

    def sign(self, method: str, locator: str, headers: Mapping[str, str]) -> SignedRequest:
        """Raises: AccessDenied, Unavailable or BadConfig if there is no token to be had."""
        name = ObjectName.of_locator(locator)
        return SignedRequest(name.media_url(self._base_url), {**headers, **self._tokens.headers(name.address)})

    def renew(self) -> bool:
        """Look for the credential again; whether it gave another token."""
        return self._tokens.renew()
