"""The bulk transport of one source: ranges into the caller's buffer, and small control calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelcache.abc.source import Body, RemoteFile
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.transport.proxies import Proxies
from modelcache.transport.signer import Precondition, Signer
from modelcache.transport.timeouts import Timeouts


@dataclass(frozen=True, slots=True)
class Response:
    """A small answer, whole. `headers` has lower-case names; `url` (where redirects ended) may hold secrets."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    url: str = field(repr=False)


class RangeClient:
    """HTTP/1.1 for one source (one credential), with a pool of kept connections. Safe for many threads."""

    def __init__(self, timeouts: Timeouts, *, ca_file: Path | None = None, proxies: Proxies | None = None) -> None:
        raise NotImplementedError

    def open_range(self, signer: Signer, file: RemoteFile, span: ByteRange, precondition: Precondition, cancel: Cancellation) -> Body:
        """Start reading `span` of exactly the listed version of `file`.

        A `Range` header is sent unless `file.ranged` is False. Redirects are followed (bounded, remembered per locator),
        a refused credential is renewed once.

        Raises: what `modelcache.abc.source.Source.open` promises.
        """
        raise NotImplementedError

    def request(
        self, method: str, url: str, headers: Mapping[str, str], cancel: Cancellation, max_body_bytes: int, *, follow: bool = True
    ) -> Response:
        """One small control call; any status is returned, none raised (`error_of_status` makes an error of one).

        Args:
            headers: all are treated as credentials: not sent to another origin than `url`'s.
            follow: follow redirects; False returns the 3xx answer.

        Raises:
            Unavailable: unreachable, stalled or cut.
            ProtocolViolation: a broken answer, or a body over `max_body_bytes`.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close idle connections; open bodies stay usable."""
        raise NotImplementedError
