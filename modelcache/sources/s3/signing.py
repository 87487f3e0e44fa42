"""Signature Version 4 in headers, one request at a time.

A presigned URL, used for many ranges, would cost less: nothing per range and 130 µs per file, against 60 µs per range
(64 ranges of 16 MiB: 4 ms of CPU per GiB, half a percent of what reading it costs). But some organisations' bucket policies refuse
presigned URLs (`s3:authType`), servers and proxies log URLs, a URL goes stale while a credential is rotated, and its signature
covers neither Range nor If-Match. `docs/design/001-s3-control-plane.md`.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelcache.sources.s3.locator import ObjectName
from modelcache.sources.s3.sdk import Sdk
from modelcache.transport import SignedRequest

SERVICE = "s3"


class S3Signer:
    """Signs requests for objects with the credential of the moment. Safe for many threads."""

    def __init__(self, sdk: Sdk) -> None:
        self._sdk = sdk

    def sign(self, method: str, locator: str, headers: Mapping[str, str]) -> SignedRequest:
        """Raises: AccessDenied, Unavailable or BadConfig if there is no credential to sign with."""
        name = ObjectName.of_locator(locator)
        place = self._sdk.place(name)
        credentials = self._sdk.credentials(name.address)
        url = place.url(name)
        if credentials is None:
            return SignedRequest(url, headers)
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        request = AWSRequest(method, url, headers=dict(headers))
        S3SigV4Auth(credentials, SERVICE, place.region).add_auth(request)
        return SignedRequest(url, dict(request.headers.items()))

    def renew(self) -> bool:
        """Run the credential chain again; whether it gave another credential."""
        return self._sdk.renew()
