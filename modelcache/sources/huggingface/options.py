"""How to reach the Hub, or a mirror of it, and as whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from modelcache.errors import BadConfig
from modelcache.sources.endpoints import checked_endpoint
from modelcache.transport import Target

PUBLIC_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Settings of one hub.

    Attributes:
        endpoint: `http(s)://host[:port][/path]` of the Hub, or of a mirror that speaks its API.
        token: access token, sent to this endpoint and nowhere else. None: what `token_file` holds.
        anonymous: send no token, whatever there is.
        token_file: file that `hf auth login` writes; read when it is first needed, and again when the hub refuses what it held. None, or
            no such file: anonymous.
        ca_file: PEM file of the CAs that vouch for the endpoint and for where it redirects to; None: the system's.
    """

    endpoint: str = PUBLIC_ENDPOINT
    token: str | None = field(default=None, repr=False)
    anonymous: bool = False
    token_file: Path | None = None
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        """Raises BadConfig: an endpoint or token that can't be used."""
        checked_endpoint(self.endpoint, "the hub's endpoint")
        if self.token is not None and not is_token(self.token):
            raise BadConfig("the hub's token is empty, or holds a space, a control or a non-ASCII character")

    @property
    def base(self) -> Target:
        """The endpoint taken apart; its resource is the path in front of the hub's own, without a slash at its end."""
        return Target.parse(self.endpoint.rstrip("/"))

    @property
    def base_url(self) -> str:
        """The endpoint in one spelling: lower-case host, no default port, no slash at its end."""
        return self.base.url.rstrip("/")


def is_token(text: str) -> bool:
    """Whether it can be the value of a header."""
    return text != "" and all("!" <= char <= "~" for char in text)
