"""Where the bytes of LFS files are: a signed URL of a CDN, asked for once per file and kept while it is good.

The hub limits how often `resolve` is asked (3,000 times in 5 minutes per address or account, the resolvers' rate limit); ranges of a
file go to the kept URL.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qsl, urlsplit

from modelcache.abc.source import RemoteFile
from modelcache.errors import OriginStalled, ProtocolViolation, SourceChanged
from modelcache.patience import Cancellation
from modelcache.sources.huggingface.hub import Hub
from modelcache.sources.huggingface.location import FileLocation
from modelcache.transport import Response, Target, redirected

MAX_KEPT = 4096
MAX_KEPT_S = 300.0
"""A place is asked for again after this long, however long its URL lives: the hub then says whether this credential may still read."""
EXPIRY_MARGIN_S = 30.0
"""A URL that expires sooner is not used: the request may wait for a connection before the CDN sees it."""
WAIT_S = 120.0
"""For another thread's answer about the same file; its own timeouts end it much earlier."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one file's bytes are.

    Attributes:
        url: of the CDN, with its signature, a secret; None: the hub serves them itself.
        good_until_s: on the monotonic clock.
    """

    url: str | None = field(repr=False)
    good_until_s: float


class Places:
    """Places of one hub as one identity. Safe for many threads: those who ask for one file at once share one request."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Place] = OrderedDict()
        self._asking: dict[str, list[queue.SimpleQueue[None]]] = {}

    def of(self, file: RemoteFile, cancel: Cancellation) -> Place:
        """The place of a listed file. Raises: as `Source.open`."""
        while True:
            bell: queue.SimpleQueue[None] = queue.SimpleQueue()
            with self._lock:
                kept = self._kept.get(file.locator)
                if kept is not None and time.monotonic() < kept.good_until_s:
                    self._kept.move_to_end(file.locator)
                    return kept
                others = self._asking.get(file.locator)
                if others is None:
                    self._asking[file.locator] = []
                else:
                    others.append(bell)
            if others is None:
                return self._ask(file, cancel)
            _wait(bell, file, cancel)

    def forget(self, locator: str, place: Place) -> None:
        """This place was refused; the next `of` asks the hub. Another that is kept meanwhile stays."""
        with self._lock:
            if self._kept.get(locator) is place:
                del self._kept[locator]

    def forget_repository(self, repo: str) -> None:
        """Ask the hub again about every file of a repository, and so whether this credential may still read them."""
        with self._lock:
            for locator in [each for each in self._kept if each.startswith(f"{repo}/")]:
                del self._kept[locator]

    def _ask(self, file: RemoteFile, cancel: Cancellation) -> Place:
        try:
            asked_at_s = time.monotonic()
            answer = self._hub.head(FileLocation.of_locator(file.locator), cancel)
            _check(file, answer)
            place = _place(answer, asked_at_s)
            with self._lock:
                self._kept[file.locator] = place
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            return place
        finally:
            with self._lock:
                waiting = self._asking.pop(file.locator)
            for bell in waiting:
                bell.put(None)


def _wait(bell: queue.SimpleQueue[None], file: RemoteFile, cancel: Cancellation) -> None:
    with cancel.on_cancel(lambda: bell.put(None)):
        try:
            bell.get(timeout=WAIT_S)
        except queue.Empty:
            raise OriginStalled("the hub did not say where a file is", address=FileLocation.of_locator(file.locator).address) from None
    cancel.check()


def _check(file: RemoteFile, answer: Response) -> None:
    """Raises SourceChanged or ProtocolViolation: what the hub says of the file here is not what it listed."""
    location = FileLocation.of_locator(file.locator)
    commit = answer.headers.get("x-repo-commit", location.commit)
    if commit != location.commit:
        raise ProtocolViolation("the hub answers for another commit", address=location.address, expected=location.commit, got=commit[:80])
    size = answer.headers.get("x-linked-size", str(file.size_bytes))
    if size != str(file.size_bytes):
        raise SourceChanged(
            "the file's size is another than listed", address=location.address, expected=str(file.size_bytes), got=size[:40]
        )
    etag = answer.headers.get("x-linked-etag", "").removeprefix("W/").strip('"')
    if len(etag) == len(file.validator) == 64 and etag != file.validator:
        raise SourceChanged("the file's digest is another than listed", address=location.address, expected=file.validator, got=etag)


def _place(answer: Response, asked_at_s: float) -> Place:
    there = redirected(Target.parse(answer.url), answer.status, answer.headers)
    if there is None:
        return Place(None, asked_at_s + MAX_KEPT_S)
    lifetime_s = _lifetime_s(there.url, answer.headers)
    kept_s = MAX_KEPT_S if lifetime_s is None else min(MAX_KEPT_S, lifetime_s - EXPIRY_MARGIN_S)
    return Place(there.url, asked_at_s + kept_s)


def _lifetime_s(url: str, headers: Mapping[str, str]) -> float | None:
    """How long a signed URL is good, from when it was given out by the hub's own clock (`Date`); None: it doesn't say.

    CloudFront writes the end as Unix time (`Expires`), SigV4 and Google V4 a start and seconds.
    """
    named = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}
    try:
        given_out_s = parsedate_to_datetime(headers["date"]).timestamp() if "date" in headers else time.time()
        if "expires" in named:
            return float(named["expires"]) - given_out_s
        for kind in ("x-amz", "x-goog"):
            if f"{kind}-expires" in named:
                start = datetime.strptime(named[f"{kind}-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                return start.timestamp() + float(named[f"{kind}-expires"]) - given_out_s
    except (ValueError, KeyError, TypeError, OverflowError):
        return None  # whatever it means: a refusal will tell
    return None
