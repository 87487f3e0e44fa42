"""How to reach S3 and as whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from modelcache.errors import BadConfig
from modelcache.sources.endpoints import checked_endpoint
from modelcache.sources.s3.sigv4 import Key


@dataclass(frozen=True, slots=True)
class S3Options:
    """Settings of one S3 source. What is None is the SDK's to find, the way every AWS tool does.

    Attributes:
        endpoint: `http(s)://host[:port]` of a store that isn't Amazon's, or of a gateway to it.
        region: of the bucket; a wrong one is corrected once, from what the store answers.
        profile: section of the SDK's configuration and credentials files.
        anonymous: send no credential at all.
        path_style: `endpoint/bucket/key` (True) or `bucket.endpoint/key` (False). None: path style where an endpoint is set,
            else what Amazon prefers.
        ca_file: PEM file with the CAs that vouch for https; None: the system's.
        verify_tls: False: the certificate is not checked (KServe's `S3_VERIFY_SSL=0`), whatever `ca_file` says.
        access_key, secret_key, session_token: one fixed credential. None: the SDK's chain (environment, profile, web
            identity (IRSA), container, instance metadata), asked again when a credential is refused or expires.
        chain_key: what that chain is known to give: the environment's own key. It saves asking the chain, and goes with it where a
            profile, a key or anonymous access is named.
    """

    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    path_style: bool | None = None
    ca_file: Path | None = None
    verify_tls: bool = True
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    chain_key: Key | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raises BadConfig: settings that contradict each other or can't be used."""
        if (self.access_key is None) != (self.secret_key is None):
            raise BadConfig("an S3 access key needs its secret key, and the other way round")
        if self.session_token is not None and self.access_key is None:
            raise BadConfig("an S3 session token needs its access key and secret key")
        if self.anonymous and self.access_key is not None:
            raise BadConfig("S3 access is either anonymous or with an access key")
        if self.endpoint is not None:
            checked_endpoint(self.endpoint, "the S3 endpoint")

    @property
    def key(self) -> Key | None:
        """To sign with; None: anonymous, or only the SDK's chain can tell."""
        if self.access_key is not None and self.secret_key is not None:
            return Key(self.access_key, self.secret_key, self.session_token)
        return None if self.anonymous or self.profile is not None else self.chain_key

    @property
    def complete(self) -> bool:
        """Whether endpoint, region, style of addresses and key are all here, so that the SDK has nothing to find."""
        placed = self.endpoint is not None and self.region is not None and self.path_style is not False
        return placed and (self.anonymous or self.key is not None)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be seen anywhere."""
        chain = () if self.chain_key is None else (self.chain_key.access_key, self.chain_key.secret_key, self.chain_key.token)
        return tuple(value for value in (self.access_key, self.secret_key, self.session_token, *chain) if value)
