"""`http://` and `https://`: one file of a web server."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote

from modelcache.abc.source import Body, Listing, Origin, RemoteFile, fingerprint
from modelcache.digest import Digest
from modelcache.errors import BadConfig, InvalidUri, NotFound, ProtocolViolation, UnsafePath
from modelcache.paths import checked_path
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.http_digests import stated_digests
from modelcache.transport import Precondition, Proxies, RangeClient, Response, SignedRequest, Target, Timeouts, ca_sha256
from modelcache.transport.head import parse_content_range
from modelcache.uri import StorageUri, UriSecrets

SETTLED_S = 60.0
"""A `Last-Modified` counts as naming one version once it is this much older than the answer's `Date`: the file can't have been
written twice within the second that it names. Source: RFC 7232 §2.2.2 (RFC 9110 §8.8.2.2 asks for one second)."""


PAGES = frozenset({"text/html", "application/xhtml+xml"})
PAGE_NAMES = (".html", ".htm", ".xhtml")

REQUESTS_OWN = frozenset({"host", "content-length", "transfer-encoding", "connection", "range", "if-match"})
"""Headers, in lower case, that say what a request is about, how it is framed, and which bytes of which version it asks for."""


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Settings of `http(s)` origins.

    Attributes:
        ca_file: PEM file of the CAs that vouch for https origins, in place of the system's.
        headers: `host` or `host:port` → headers sent to it and to no other (KServe's `https-host` and `headers`). Secrets.
    """

    ca_file: Path | None = None
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Raises BadConfig: a header that is not for settings to set."""
        for name in (name for headers in self.headers.values() for name in headers):
            expect_settable(name)


def expect_settable(name: str) -> None:
    """Raises BadConfig: each request has a header of this name of its own."""
    if name.lower() in REQUESTS_OWN:
        raise BadConfig(f"the header `{name}` is set for each request by modelcache itself, and can't be named in settings", got=name)


class HttpSource:
    """Single files of one `scheme://host:port`, with one credential. Safe for many threads.

    A file's version is its strong ETag, else a `Last-Modified` that is settled, else nothing: then it is read in one request.
    Every answer has to repeat it. (nginx makes ETags of seconds and size: a second write of equal size within a second is not
    seen by any client.) The name in the snapshot is the last part of the URL's path. Redirects are followed; what was
    found behind them is kept in memory only.
    """

    def __init__(
        self, uri: StorageUri, secrets: UriSecrets, options: HttpOptions, timeouts: Timeouts, *, proxies: Proxies | None = None
    ) -> None:
        """
        Args:
            uri: any URI at the origin; other files of it can be listed, too.
            secrets: what `parse_uri` took out of `uri`; sent with every request.
        """
        home = Target.parse(f"{uri.scheme}://{uri.authority}/")
        ca = ca_sha256(options.ca_file) if uri.scheme == "https" else None
        self._origin = Origin(home.endpoint, ca)
        self._signer = _Credential(home, _own_headers(home, secrets, options), secrets.query)
        self._client = RangeClient(timeouts, ca_file=options.ca_file, proxies=proxies)

    @property
    def origin(self) -> Origin:
        return self._origin

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        """As `Source.list`; one ranged GET of the first byte. Raises ProtocolViolation also for a web page in the place of a file."""
        address = str(uri)
        name = _file_name(uri, address)
        locator = f"{uri.scheme}://{uri.authority}/{uri.path}" + (f"?{uri.query}" if uri.query else "")
        answer = self._client.probe(self._signer, locator, {"Range": "bytes=0-0"}, cancel)
        if uri.digest is None and answer.status in (200, 206):  # before its size: pages mostly state none
            _expect_no_page(answer.headers, name, address)
        size_bytes, ranged = _size(answer, address)
        if not uri.selects(name):
            raise NotFound("the patterns leave out the only file there", address=address)
        digests = stated_digests(answer.status, answer.headers, answer.redirects) if answer.status < 300 else ()
        files = (RemoteFile(name, size_bytes, locator, _validator(answer.headers), digests, ranged),)
        return Listing(uri, self._origin, files[0].validator or fingerprint(files), immutable=False, files=files)

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """As `Source.open`. The final 0 comes after a second look at the version, where nothing else would show a mixture."""
        body = self._open(file, span, cancel)
        if file.digests or not file.validator:
            return body
        return _ConfirmedBody(body, lambda stop: self._confirm(file, stop), cancel)

    def close(self) -> None:
        """As `Source.close`."""
        self._client.close()

    def _open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        return self._client.open_range(self._signer, file, span, _precondition(file.validator), cancel)

    def _confirm(self, file: RemoteFile, cancel: Cancellation) -> None:
        """Raises SourceChanged if the origin now has another version; else what `open` and `readinto` raise.

        Where no ranges are served the head of the answer is all that is waited for, and its connection given up.
        """
        body = self._open(file, ByteRange(0, 1 if file.ranged else file.size_bytes), cancel)
        try:
            while file.ranged and body.readinto(memoryview(bytearray(1))):
                pass
        finally:
            body.close()


class _ConfirmedBody:
    """A body whose end is told only after `confirm`.

    A server that sends a file while somebody writes into it sends a mixture under the old version's ETag. The first write
    changes the version, so a look after the last byte tells; without it, only the next range would.
    """

    def __init__(self, body: Body, confirm: Callable[[Cancellation], None], cancel: Cancellation) -> None:
        self._body = body
        self._confirm = confirm
        self._cancel = cancel
        self._stop = Cancellation()
        self._confirmed = False

    @property
    def stated(self) -> tuple[Digest, ...]:
        """As `Body.stated`."""
        return self._body.stated

    def readinto(self, buffer: memoryview) -> int:
        count = self._body.readinto(buffer)
        if count == 0 and not self._confirmed:
            with self._cancel.on_cancel(self._stop.cancel):
                self._confirm(self._stop)
            self._confirmed = True
        return count

    def close(self) -> None:
        self._body.close()

    def abort(self) -> None:
        self._stop.cancel()
        self._body.abort()


@dataclass(frozen=True, slots=True)
class _Credential:
    """The signer of one origin: its own headers and signing parameters, for its own URLs only."""

    home: Target
    headers: Mapping[str, str] = field(repr=False)
    query: str = field(repr=False)

    def sign(self, method: str, locator: str, headers: Mapping[str, str]) -> SignedRequest:
        if not Target.parse(locator).same_origin(self.home):
            return SignedRequest(locator, headers)
        if not self.query:
            return SignedRequest(locator, {**self.headers, **headers})
        return SignedRequest(f"{locator}{'&' if '?' in locator else '?'}{self.query}", {**self.headers, **headers})

    def renew(self) -> bool:
        return False


def _own_headers(home: Target, secrets: UriSecrets, options: HttpOptions) -> dict[str, str]:
    """What the settings say about this host; userinfo in the URI wins over a configured Authorization."""
    own: dict[str, str] = {}
    for key, headers in options.headers.items():
        if key.lower() in home.names:
            own.update(headers)
    if secrets.userinfo is not None:
        own = {name: value for name, value in own.items() if name.lower() != "authorization"}
        own["Authorization"] = "Basic " + base64.b64encode(unquote(secrets.userinfo).encode()).decode()
    return own


def _file_name(uri: StorageUri, address: str) -> str:
    name = unquote(uri.path.rpartition("/")[2], errors="surrogateescape")
    if not name:
        raise InvalidUri("the URL names no file", address=address, hint="an `http(s)` URI names one file: `https://host/path/file`")
    if "/" in name:
        raise UnsafePath("the file's name holds a slash", address=address, got=ascii(name[:300]))
    return checked_path(name, address=address)


def _size(answer: Response, address: str) -> tuple[int, bool]:
    """Size of the file, and whether ranges of it are served."""
    coding = answer.headers.get("content-encoding", "identity").strip().lower()
    if answer.status in (200, 206) and coding not in ("", "identity"):
        raise ProtocolViolation("the file is only served encoded", address=address, expected="identity", got=coding[:40])
    stated = parse_content_range(answer.headers, address=address)
    total_bytes = None if stated is None else stated.total_bytes
    if answer.status == 416 and total_bytes == 0:
        return 0, True
    if answer.status == 206:
        if stated is None or (stated.start, stated.stop) != (0, 1):
            raise ProtocolViolation("another range than the asked one", address=address, expected="[0, 1)")
        if total_bytes is None:
            raise _sizeless(address)
        return total_bytes, True
    if answer.status == 200:
        text = answer.headers.get("content-length")
        if text is None:
            raise _sizeless(address)
        return int(text.partition(",")[0]), False
    if answer.status == 416:
        raise ProtocolViolation("no first byte, but not empty either", address=address)
    error = answer.error(listed=False)
    if answer.status == 401:
        error.hint = "give a header for its host (`http.headers` in the settings), or a URI with user and password on stdin"
    raise error


def _expect_no_page(headers: Mapping[str, str], name: str, address: str) -> None:
    """A page to sign in, of a directory, or about the model comes with 200 and a size like a file.

    Raises ProtocolViolation: what is served says of itself that it is a page, and its name doesn't.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in PAGES and not name.lower().endswith(PAGE_NAMES):
        hint = "open it in a browser: is it a page to sign in, or one about the model? A model of the Hub is written `hf://owner/model`"
        raise ProtocolViolation("a web page is served there, not a file", address=address, expected="a file", got=kind, hint=hint)


def _sizeless(address: str) -> ProtocolViolation:
    hint = "without a size its end can't be told from a broken connection; serve it with Content-Length"
    return ProtocolViolation("the origin does not state the file's size", address=address, hint=hint)


def _validator(headers: Mapping[str, str]) -> str:
    """A strong ETag with its quotes, else a settled Last-Modified, else empty. One that is not ASCII is none: no request can name it."""
    etag = headers.get("etag", "")
    if len(etag) >= 2 and etag.startswith('"') and etag.endswith('"') and etag.isascii():
        return etag
    modified, date = headers.get("last-modified", ""), headers.get("date", "")
    try:
        age_s = (parsedate_to_datetime(date) - parsedate_to_datetime(modified)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return ""
    return modified if age_s >= SETTLED_S and modified.isascii() else ""


def _precondition(validator: str) -> Precondition:
    if not validator:
        return Precondition()
    if validator.startswith('"'):
        return Precondition({"If-Match": validator}, {"ETag": validator})
    return Precondition({"If-Unmodified-Since": validator}, {"Last-Modified": validator})
