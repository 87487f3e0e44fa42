"""Who may read: the part of a source that turns a locator into a request that the origin accepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request ready to be sent. Its URL and headers may hold secrets, so neither is printed.

    Attributes:
        url: absolute `http(s)` URL, percent-encoded, with whatever signing query it needs; no userinfo, no fragment.
        headers: every header to send: those handed to `sign` and the signer's own. `Host`, `User-Agent`, `Connection` and
            `Accept-Encoding: identity` are the transport's and may not be here; a signature may cover `Host` as
            `host[:port]` of `url`, the port left out where it is the scheme's own.
        expires_at_s: Unix time after which the origin refuses it; None: not known, or never.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    expires_at_s: float | None = None


class Signer(Protocol):
    """Credentials of one source, applied to single requests. Safe for many threads; `sign` is called once per range.

    Headers that a signer adds are credentials to the transport: it sends them to the origin of the URL that the signer
    gave, and to no other (a redirect elsewhere goes out with the headers handed to `sign` alone).
    """

    def sign(self, method: str, locator: str, headers: Mapping[str, str]) -> SignedRequest:
        """The request for a locator (`RemoteFile.locator`).

        Args:
            method: `GET` or `HEAD`.
            headers: what the transport needs to send: `Range` and the preconditions. A signature may cover them.
        """
        ...

    def renew(self) -> bool:
        """The origin refused a request of ours (401, 403, an expired token), or it is about to expire: get fresh credentials.

        Many threads may ask at the same time; one renewal answers them all. Called at most once per `open_range`.

        Returns: whether signing again can give another request; False: nothing to renew, the refusal is final.
        """
        ...


@dataclass(frozen=True, slots=True)
class Unsigned:
    """A signer for origins that want no credential; the locator is the URL."""

    def sign(self, method: str, locator: str, headers: Mapping[str, str]) -> SignedRequest:
        return SignedRequest(locator, headers)

    def renew(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Precondition:
    """What makes an origin refuse, and us notice, another version than the listed one.

    Attributes:
        headers: sent with the request, such as `{"If-Match": '"9f2c"'}`.
        echoes: headers that the answer must carry with exactly this value, such as `{"ETag": '"9f2c"'}`; another value or
            none is `SourceChanged`. Catches origins that ignore preconditions.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    echoes: Mapping[str, str] = field(default_factory=dict)
