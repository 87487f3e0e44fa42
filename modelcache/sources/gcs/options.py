"""How to reach Google Cloud Storage and as whom."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass, field
from pathlib import Path

from modelcache.errors import BadConfig, InvalidUri
from modelcache.sources.endpoints import checked_endpoint
from modelcache.transport import Target, safe_address

GOOGLE = "https://storage.googleapis.com"
TAKEN = ("service_account", "authorized_user")
"""Kinds of credentials that hold all that they need. The others (workload identity, impersonation, external accounts) name sources to read
or run. Source: google-auth, `_default.py`."""


@dataclass(frozen=True, slots=True)
class GcsOptions:
    """Settings of one GCS source. What is None is the SDK's to find, the way every Google tool does.

    Attributes:
        endpoint: `http(s)://host[:port]` of a private endpoint or an emulator; None: Google's. Over plain http no credential is looked
            for, and one that is given goes to this machine alone.
        anonymous: send no credential at all.
        credentials_file: service account key, user credential or workload identity configuration, as JSON. None: application default
            credentials (GOOGLE_APPLICATION_CREDENTIALS, gcloud's, the metadata server); where there are none, no credential is sent.
        credentials_json: the content of such a file instead, of somebody who is not believed: a service account's key or a user's
            credential, which name nothing of this machine. Its token service is at `https`, or at the endpoint's host.
        access_token: one fixed OAuth 2.0 token in place of all that.
        ca_file: PEM file with the CAs that vouch for https; None: the system's. Beside an `endpoint` it vouches for that alone, and
            Google's token services are verified by the system's.
    """

    endpoint: str | None = None
    anonymous: bool = False
    credentials_file: Path | None = None
    credentials_json: str | None = field(default=None, repr=False)
    access_token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        """Raises BadConfig: settings that contradict each other or can't be used."""
        if self.anonymous and self._given:
            raise BadConfig("GCS access is either anonymous or with a credential")
        if self.endpoint is not None:
            _check_endpoint(self.endpoint, with_credential=not self.sends_nothing)
        if self.credentials_json is not None:
            _check_credentials(self.credentials_json, self.endpoint)

    @property
    def sends_nothing(self) -> bool:
        """Whether requests go without a credential, whatever this machine has."""
        return self.anonymous or (not self._given and self.base_url.lower().startswith("http://"))

    @property
    def _given(self) -> bool:
        return any(each is not None for each in (self.access_token, self.credentials_file, self.credentials_json))

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


def _check_credentials(text: str, endpoint: str | None) -> None:
    """Raises BadConfig, which tells nothing of the text but its type: it is none that is taken, or leads elsewhere."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = None
    kind = told.get("type") if isinstance(told, dict) else None
    if not isinstance(told, dict) or kind not in TAKEN:
        got = ascii(kind[:40]) if isinstance(kind, str) else None
        hint = "other kinds name files, programs and addresses to read, which are this machine's"
        raise BadConfig("this is no Google credential that is taken from somebody else", expected=" or ".join(TAKEN), got=got, hint=hint)
    place = told.get("token_uri", "")
    if kind == "service_account" and not (isinstance(place, str) and _is_token_service(place, endpoint)):
        raise BadConfig("`token_uri` of a Google credential is no `https` address", expected="https://oauth2.googleapis.com/token")


def _is_token_service(place: str, endpoint: str | None) -> bool:
    try:
        target = Target.parse(place)
    except InvalidUri:
        return False
    if target.scheme == "https":
        return True
    return endpoint is not None and target.endpoint == Target.parse(endpoint).endpoint


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
