"""The bulk transport of one source: ranges into the caller's buffer, and small control calls."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelcache.abc.source import RemoteFile
from modelcache.errors import ModelCacheError, ProtocolViolation, Unavailable
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.transport.body import RangeBody, read_small
from modelcache.transport.checks import check_framing, check_version
from modelcache.transport.exchange import Answer, Exchanger, Request
from modelcache.transport.head import Headers
from modelcache.transport.moved import MovedTargets
from modelcache.transport.proxies import Proxies
from modelcache.transport.redirects import MAX_REDIRECTS, redirected
from modelcache.transport.signer import Precondition, SignedRequest, Signer
from modelcache.transport.status import error_of_status, origin_code, wants_renewal
from modelcache.transport.target import Target, safe_address
from modelcache.transport.timeouts import Timeouts
from modelcache.transport.tls import Trust

RENEW_BEFORE_S = 30.0
"""A request that expires sooner than this is signed anew: it may wait for a connection before the origin sees it."""
SMALL_BODY_BYTES = 64 << 10
"""Of an error or a probe: S3's XML errors are under 1 KiB, gateways' HTML pages a few. A larger one is not read."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Response:
    """A small answer, whole. Header names are looked up without regard to case.

    Attributes:
        url: where redirects ended; may hold secrets.
        body: empty where it was too large to be read for its status' sake.
        redirects: headers of the redirects on the way, in order.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    url: str = field(repr=False)
    redirects: tuple[Mapping[str, str], ...] = field(default=(), repr=False)

    @property
    def code(self) -> str | None:
        """The origin's own error code, where its body is S3's or GCS' XML."""
        return origin_code(self.body)

    def error(self, *, listed: bool) -> ModelCacheError:
        """What this status means where success was hoped for. `listed`: the object was listed before, so its absence is a change."""
        return error_of_status(self.status, self.headers, address=safe_address(self.url), listed=listed, code=self.code)


@dataclass(frozen=True, slots=True)
class _Call:
    """One `open_range` or `probe`: what stays the same however often it is signed and redirected."""

    method: str
    locator: str
    headers: Mapping[str, str] = field(repr=False)
    cancel: Cancellation


class RangeClient:
    """HTTP/1.1 for one source (one credential), with a pool of kept connections. Safe for many threads.

    https is verified unless `verify` says otherwise. Bodies arrive unencoded or not at all. Secrets stay in memory: errors and log
    records show URLs without userinfo and query.
    """

    def __init__(
        self,
        timeouts: Timeouts,
        *,
        ca_file: Path | None = None,
        verify: bool = True,
        proxies: Proxies | None = None,
        agent: str = "modelcache",
    ) -> None:
        """
        Args:
            ca_file: PEM file of the CAs that vouch for https origins, in place of the system's.
            verify: False: no certificate is checked, for a person who knows what that means.
            agent: the `User-Agent`.
        """
        self._timeouts = timeouts
        self._exchanger = Exchanger(timeouts, Trust(ca_file, verify=verify), proxies or Proxies(), agent)
        self._moved = MovedTargets()

    def open_range(self, signer: Signer, file: RemoteFile, span: ByteRange, precondition: Precondition, cancel: Cancellation) -> RangeBody:
        """Start reading `span` of exactly the listed version of `file`.

        A `Range` header is sent unless `file.ranged` is False; then `span` has to be the whole file and the answer a 200.
        Redirects are followed (five at most, remembered per locator), a refused credential is renewed once. `cancel` breaks every
        wait, also those of the body.

        Raises: what `modelcache.abc.source.Source.open` promises.
        """
        if span.size_bytes == 0 or (not file.ranged and span != ByteRange(0, file.size_bytes)):
            raise ValueError(f"{span} of `{file.path}` can't be asked for")
        headers = dict(precondition.headers)
        if file.ranged:
            headers["Range"] = span.http_header
        answer = self._fetch(signer, _Call("GET", file.locator, headers, cancel))
        if isinstance(answer, Response):
            raise answer.error(listed=True)
        try:
            address = str(answer.request.target)
            if answer.head.status not in (200, 206):
                raise error_of_status(answer.head.status, answer.head.headers, address=address, listed=True)
            check_version(answer, precondition, address)
            check_framing(answer, file, span, address)
            return RangeBody(answer, span.size_bytes, address=address, stall_s=self._timeouts.stall_s, cancel=cancel)
        except BaseException:
            answer.release(reuse=False)
            raise

    def probe(self, signer: Signer, locator: str, headers: Mapping[str, str], cancel: Cancellation) -> Response:
        """A GET for its head's sake: signed, redirected and renewed like `open_range`; any status is returned.

        A redirect is asked for again, and then remembered for `open_range`. A body over 64 KiB, or of unknown length, is not
        read; its connection is closed.

        Raises: Unavailable, ProtocolViolation, Cancelled.
        """
        self._moved.forget(locator)
        answer = self._fetch(signer, _Call("GET", locator, headers, cancel))
        return answer if isinstance(answer, Response) else self._over(answer, cancel)

    def request(
        self, method: str, url: str, headers: Mapping[str, str], cancel: Cancellation, max_body_bytes: int, *, follow: bool = True
    ) -> Response:
        """One small control call; any status is returned, none raised (`Response.error` makes an error of one).

        Args:
            headers: all are treated as credentials: not sent to another origin than `url`'s.
            max_body_bytes: of a 2xx answer.
            follow: follow redirects; False returns the 3xx answer.

        Raises:
            Unavailable: unreachable, stalled or cut.
            ProtocolViolation: a broken answer, or a body over `max_body_bytes`.
        """
        call = _Call(method, url, {}, cancel)
        answer = self._follow(call, SignedRequest(url, headers), hops=MAX_REDIRECTS if follow else 0)
        if isinstance(answer, Response):
            return answer
        return _response(answer, read_small(answer, max_body_bytes, cancel))

    def post(self, url: str, headers: Mapping[str, str], body: bytes, cancel: Cancellation, max_body_bytes: int) -> Response:
        """One small POST, never redirected; any status is returned. It may be sent twice, if a kept connection turns out dead.

        Raises: as `request`.
        """
        target = Target.parse(url)
        answer = self._exchanger.send(Request("POST", target, headers, body), cancel)
        _log.debug("POST %s -> %d", target, answer.head.status)
        return _response(answer, read_small(answer, max_body_bytes, cancel)) if answer.head.status < 300 else self._over(answer, cancel)

    def forget_redirects(self, beginning: str) -> None:
        """Ask the origin again about locators that begin so, and with it whether this credential may still read them."""
        self._moved.forget_all(beginning)

    def close(self) -> None:
        """Close idle connections; open bodies stay usable."""
        self._exchanger.close()

    def _fetch(self, signer: Signer, call: _Call) -> Answer | Response:
        """Sign and send; past a remembered redirect that no longer works, and once more with fresh credentials."""
        signed = self._sign(signer, call)
        moved = self._moved.of(call.locator)
        if moved is not None:
            answer = self._shortcut(call, signed, moved)
            if answer is not None:
                return answer
            signed = self._sign(signer, call)
        answer = self._follow(call, signed)
        if isinstance(answer, Response) and wants_renewal(answer.status, answer.code) and signer.renew():
            signed = signer.sign(call.method, call.locator, call.headers)
            answer = self._follow(call, signed)
        return answer

    def _sign(self, signer: Signer, call: _Call) -> SignedRequest:
        signed = signer.sign(call.method, call.locator, call.headers)
        if signed.expires_at_s is not None and signed.expires_at_s - time.time() < RENEW_BEFORE_S and signer.renew():
            signed = signer.sign(call.method, call.locator, call.headers)
        return signed

    def _shortcut(self, call: _Call, signed: SignedRequest, moved: Target) -> Answer | Response | None:
        """Ask where the origin last redirected to; None if that is over (expired, gone, unreachable), so the origin has to be asked."""
        try:
            answer = self._follow(call, signed, moved)
        except Unavailable:
            self._moved.forget(call.locator)
            return None
        if isinstance(answer, Response) and (wants_renewal(answer.status, answer.code) or answer.status in (404, 410)):
            self._moved.forget(call.locator)
            return None
        return answer

    def _follow(self, call: _Call, signed: SignedRequest, start: Target | None = None, *, hops: int = MAX_REDIRECTS) -> Answer | Response:
        """Send to `start` (the signed URL) and wherever it redirects; an Answer is a success whose body is still to be read.

        The signer's own headers go to the origin of the signed URL alone.
        """
        home = Target.parse(signed.url)
        start = target = start or home
        passed: list[Headers] = []
        for _ in range(hops + 1):
            request = Request(call.method, target, signed.headers if target.same_origin(home) else call.headers)
            answer = self._exchanger.send(request, call.cancel)
            status = answer.head.status
            _log.debug("%s (%s) -> %d", request, call.headers.get("Range", "no range"), status)
            answer.redirects = tuple(passed)
            if status < 300:
                if target != start:
                    self._moved.remember(call.locator, target)
                return answer
            response = self._over(answer, call.cancel)
            there = redirected(target, status, answer.head.headers) if hops else None
            if there is None:
                return response
            passed.append(answer.head.headers)
            target = there
        raise ProtocolViolation(f"over {hops} redirects", address=str(start))

    def _over(self, answer: Answer, cancel: Cancellation) -> Response:
        """End an answer whose body matters little: read if that is cheap, so that the connection can be kept."""
        length_bytes = answer.length_bytes
        if (length_bytes is None and not answer.head.chunked) or (length_bytes or 0) > SMALL_BODY_BYTES:
            answer.release(reuse=False)
            return _response(answer, b"")
        try:
            return _response(answer, read_small(answer, SMALL_BODY_BYTES, cancel))
        except (Unavailable, ProtocolViolation):
            return _response(answer, b"")


def _response(answer: Answer, body: bytes) -> Response:
    return Response(answer.head.status, answer.head.headers, body, answer.request.target.url, answer.redirects)
