"""How to reach Google Cloud Storage and as whom."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from modelcache.errors import BadConfig
from modelcache.sources.endpoints import checked_endpoint
from modelcache.transport import safe_address

GOOGLE = "https://storage.googleapis.com"


@dataclass(frozen=True, slots=True)
class GcsOptions:
    """Settings of one GCS source. What is None is the SDK's to find, the way every Google tool does.

    Attributes:
        endpoint: `http(s)://host[:port]` of a private endpoint or an emulator; None: Google's. Over plain http no credential is looked
            for, and one that is given goes to this machine alone.
        anonymous: send no credential at all.
        credentials_file: service account key, user credential or workload identity configuration, as JSON. None: application default
            credentials (GOOGLE_APPLICATION_CREDENTIALS, gcloud's, the metadata server); where there are none, no credential is sent.
        access_token: one fixed OAuth 2.0 token in place of all that.
        ca_file: PEM file with the CAs that vouch for https; None: the system's. Beside an `endpoint` it vouches for that alone, and
            Google's token services are verified by the system's.
    """

    endpoint: str | None = None
    anonymous: bool = False
    credentials_file: Path | None = None
    access_token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        """Raises BadConfig: settings that contradict each other or can't be used."""
        if self.anonymous and (self.access_token is not None or self.credentials_file is not None):
            raise BadConfig("GCS access is either anonymous or with a credential")
        if self.endpoint is not None:
            _check_endpoint(self.endpoint, with_credential=not self.sends_nothing)

    @property
    def sends_nothing(self) -> bool:
        """Whether requests go without a credential, whatever this machine has."""
        given = self.access_token is not None or self.credentials_file is not None
        return self.anonymous or (not given and self.base_url.lower().startswith("http://"))

    @property
    def base_url(self) -> str:
        """What the API's paths are added to."""
        return (self.endpoint or GOOGLE).rstrip("/")


def _check_endpoint(endpoint: str, *, with_credential: bool) -> None:
    target = checked_endpoint(endpoint, "the GCS endpoint")
    if target.scheme == "http" and with_credential and not _is_loopback(target.host):
        raise BadConfig(
            "a token must not go to a GCS endpoint over plain http",
            got=safe_address(endpoint),
            hint="name it with https, or ask for anonymous access",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
