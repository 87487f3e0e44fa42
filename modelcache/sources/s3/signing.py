"""Signature Version 4 in headers, one request at a time.

A presigned URL, used for many ranges, would cost less: nothing per range, against 15 µs per range. But some organisations' bucket
policies refuse presigned URLs (`s3:authType`), servers and proxies log URLs, a URL goes stale while a credential is rotated, and its
signature covers neither Range nor If-Match. `docs/design/001-s3-control-plane.md`.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelcache.sources.s3.control import ControlPlane
from modelcache.sources.s3.locator import ObjectName
from modelcache.sources.s3.sigv4 import signed_headers
from modelcache.transport import SignedRequest


class S3Signer:
    """Signs requests for objects with the credential of the moment. Safe for many threads."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    def sign(self, method: str, locator: str, headers: Mapping[str, str]) -> SignedRequest:
        """Raises: AccessDenied, Unavailable or BadConfig if there is no credential to sign with."""
        name = ObjectName.of_locator(locator)
        place = self._control.place(name)
        credentials = self._control.credentials(name.address)
        url = place.url(name)
        if credentials is None:
            return SignedRequest(url, headers)
        return SignedRequest(url, signed_headers(method, url, headers, credentials, place.region))

    def renew(self) -> bool:
        """Run the credential chain again; whether it gave another credential."""
        return self._control.renew()
