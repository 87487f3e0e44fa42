"""What the S3 source asks of its control plane: calls, the credential of the moment, and where a bucket is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from modelcache.patience import Cancellation
from modelcache.sources.attempts import attempted
from modelcache.sources.s3.locator import KEY_SAFE, ObjectName
from modelcache.sources.s3.sigv4 import Key


@dataclass(frozen=True, slots=True)
class Place:
    """Where the objects of a bucket are and for which region a request is signed. Holds no secret."""

    base_url: str
    region: str

    def url(self, name: ObjectName) -> str:
        return f"{self.base_url}{quote(name.key, safe=KEY_SAFE)}{name.query}"


class ControlPlane(Protocol):
    """One S3 endpoint as one identity. Safe for many threads."""

    @property
    def endpoint(self) -> str:
        """The service's URL, before a bucket is put into it. Raises BadConfig."""

    def call(self, operation: str, cancel: Cancellation, *, bucket: str, address: str, **parameters: object) -> dict[str, Any]:
        """`list_objects_v2` or `head_object`; the answer as botocore parses it, with the headers as sent under
        `ResponseMetadata.HTTPHeaders`. A bucket in another region is asked there, once.

        Raises: what `Source.list` promises, and BadConfig for settings that can't be used.
        """

    def credentials(self, address: str) -> Key | None:
        """The credential to sign with now; None: anonymous. Raises AccessDenied, Unavailable, BadConfig."""

    def place(self, name: ObjectName) -> Place:
        """Where a bucket's objects are: as the last call to it that succeeded was addressed and signed.

        Without such a call a HeadObject is made. Raises: as `call`.
        """

    def renew(self) -> bool:
        """Look for another credential; whether there is one."""

    def close(self) -> None:
        """Drop what is kept; a later call makes it anew."""


def known_place(places: Mapping[str, Place], control: ControlPlane, name: ObjectName) -> Place:
    """As `ControlPlane.place`, for a plane whose calls note in `places` where each bucket was."""
    place = places.get(name.bucket)
    if place is None:
        cancel = Cancellation()
        attempted(
            lambda: control.call("head_object", cancel, bucket=name.bucket, address=name.address, Key=name.key), control.renew, cancel
        )
        place = places[name.bucket]
    return place
