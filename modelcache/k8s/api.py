"""A thin client of the API server: objects as JSON, server-side apply, and a watch that notices silence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from modelcache.errors import (
    AccessDenied,
    BadConfig,
    BodyCut,
    ModelCacheError,
    NotFound,
    OriginBusy,
    OriginStalled,
    ProtocolViolation,
    SourceChanged,
)
from modelcache.patience import Cancellation
from modelcache.transport import Proxies, Target, Timeouts, retry_after_s
from modelcache.transport.body import read_small, received_chunks
from modelcache.transport.exchange import Answer, Exchanger, Request
from modelcache.transport.tls import Trust
from modelcache.units import MIB

MAX_ANSWER_BYTES = 16 * MIB
"""etcd refuses objects over 1.5 MiB; a list of one node's objects is one of them."""
MAX_EVENT_BYTES = 4 * MIB
MAX_TOKEN_BYTES = 64 << 10
TIMEOUTS = Timeouts(connect_s=10.0, stall_s=20.0)
WATCH_SILENCE_S = 100.0
"""The API server sends a bookmark at least every minute (its watch cache's `bookmarkFrequency`); half of one more for the way."""

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ApiPlace:
    """Where an API server is, and who asks.

    Attributes:
        ca_file: what vouches for it; None: the system's CAs.
        token_file: of a bearer token, read for each request, for kubelet renews it; None: nobody in particular.
    """

    url: str
    ca_file: Path | None
    token_file: Path | None


@dataclass(frozen=True, slots=True)
class Event:
    """One of a watch. `kind`: ADDED, MODIFIED, DELETED or BOOKMARK."""

    kind: str
    object: Object

    @property
    def version(self) -> str:
        """To watch on from."""
        return str(self.object["metadata"]["resourceVersion"])


class VersionGone(SourceChanged):
    """A watch can't begin at this version (410): list again."""


class ApiServer:
    """Safe for many threads. Errors name the method and path, and what the server said; no token is in them."""

    def __init__(self, place: ApiPlace, *, timeouts: Timeouts = TIMEOUTS, silence_s: float = WATCH_SILENCE_S) -> None:
        """
        Args:
            silence_s: without one byte on a watch, after which it is given up.
        """
        self._place = place
        trust = Trust(place.ca_file)
        self._calls = Exchanger(timeouts, trust, Proxies(), "modelcache")
        self._watches = Exchanger(Timeouts(timeouts.connect_s, silence_s), trust, Proxies(), "modelcache")

    def close(self) -> None:
        self._calls.close()
        self._watches.close()

    def get(self, path: str, cancel: Cancellation, query: Mapping[str, str] | None = None) -> Object:
        """
        Raises:
            NotFound, AccessDenied, BadConfig: the answer says so.
            Unavailable: no answer, or not now (429, 5xx; `retry_after_s`).
            ProtocolViolation, Cancelled.
        """
        return self._ask("GET", _with(path, query), b"", "application/json", cancel)

    def post(self, path: str, body: Object, cancel: Cancellation) -> Object:
        """Make an object, or ask for a review. Raises: as `get`; SourceChanged: it exists already."""
        return self._ask("POST", path, json.dumps(body).encode(), "application/json", cancel)

    def apply(self, path: str, body: Object, *, manager: str, cancel: Cancellation) -> Object:
        """Server-side apply, with force: `manager` owns these fields from here on.

        Raises:
            As `get`; SourceChanged: a conflict.
        """
        query = {"fieldManager": manager, "force": "true"}
        return self._ask("PATCH", _with(path, query), json.dumps(body).encode(), "application/apply-patch+yaml", cancel)

    def merge(self, path: str, body: Object, cancel: Cancellation) -> Object:
        """JSON merge patch. Raises: as `apply`."""
        return self._ask("PATCH", path, json.dumps(body).encode(), "application/merge-patch+json", cancel)

    def watch(self, path: str, query: Mapping[str, str], cancel: Cancellation) -> Iterator[Event]:
        """Events as they come, until the server ends the stream.

        Raises:
            VersionGone: list again.
            As `get`; OriginStalled: nothing came for `silence_s`. BodyCut.
        """
        resource = _with(path, {**query, "watch": "true", "allowWatchBookmarks": "true"})
        answer = self._send(self._watches, "GET", resource, b"", "application/json", cancel)
        address = f"GET {path}"
        try:
            with cancel.on_cancel(answer.abort):
                yield from _events(answer, address)
        except TimeoutError:
            cancel.check()
            raise OriginStalled("the watch fell silent", address=address) from None
        except OSError as error:
            cancel.check()
            raise BodyCut(f"the watch broke ({error.strerror or type(error).__name__})", address=address) from None
        except ModelCacheError:
            cancel.check()
            raise
        finally:
            answer.release(reuse=False)

    def _ask(self, method: str, resource: str, body: bytes, content: str, cancel: Cancellation) -> Object:
        answer = self._send(self._calls, method, resource, body, content, cancel)
        return _object(read_small(answer, MAX_ANSWER_BYTES, cancel), f"{method} {resource.partition('?')[0]}")

    def _send(self, exchanger: Exchanger, method: str, resource: str, body: bytes, content: str, cancel: Cancellation) -> Answer:
        """An answer that is a success. Raises what its status means."""
        headers = {"Accept": "application/json", "Content-Type": content, **self._authorization()}
        answer = exchanger.send(Request(method, Target.parse(self._place.url.rstrip("/") + resource), headers, body), cancel)
        if answer.head.status < 300:
            return answer
        said, head = read_small(answer, MAX_ANSWER_BYTES, cancel), answer.head
        raise error_of(head.status, _message(said), f"{method} {resource.partition('?')[0]}", retry_after_s(head.headers))

    def _authorization(self) -> dict[str, str]:
        path = self._place.token_file
        if path is None:
            return {}
        try:
            with open(path, "rb") as file:
                token = file.read(MAX_TOKEN_BYTES).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not ASCII"
            raise BadConfig(f"the API server's token can't be read ({reason})", address=str(path)) from None
        return {"Authorization": f"Bearer {token}"}


def error_of(status: int, message: str, address: str, retry_after: float | None = None) -> ModelCacheError:
    """What a status other than success means. `message`: the server's own."""
    try:
        said = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        said = str(status)
    said = f"the API server answered {said}" + (f": {message}" if message else "")
    if status in (401, 403):
        return AccessDenied(said, address=address)
    if status == 404:
        return NotFound(said, address=address)
    if status == 410:
        return VersionGone(said, address=address)
    if status == 409:
        return SourceChanged(said, address=address)
    if status in (408, 429) or status >= 500:
        return OriginBusy(said, address=address, retry_after_s=retry_after)
    if 400 <= status < 500:
        return BadConfig(said, address=address)
    return ProtocolViolation(said, address=address, got=str(status))


def _with(path: str, query: Mapping[str, str] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _object(data: bytes, address: str) -> Object:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ProtocolViolation("the API server's answer is no JSON object", address=address, got=ascii(data[:80]))
    return found


def _message(data: bytes) -> str:
    """Of a `Status`; at most 500 characters."""
    try:
        found = json.loads(data)
    except ValueError:
        return data[:200].decode("utf-8", "replace").strip()
    return str(found.get("message", ""))[:500] if isinstance(found, dict) else ""


def _events(answer: Answer, address: str) -> Iterator[Event]:
    """One JSON object a line."""
    rest = b""
    for chunk in received_chunks(answer, MAX_EVENT_BYTES, address=address):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_EVENT_BYTES:
            raise ProtocolViolation(f"an event is over {MAX_EVENT_BYTES} bytes", address=address)
        for line in filter(None, lines):
            yield _event(_object(line, address), address)


def _event(found: Object, address: str) -> Event:
    kind, told = found.get("type"), found.get("object")
    if not isinstance(kind, str) or not isinstance(told, dict):
        raise ProtocolViolation("not an event of a watch", address=address)
    if kind == "ERROR":
        code = told.get("code")
        raise error_of(code if isinstance(code, int) else HTTPStatus.INTERNAL_SERVER_ERROR, str(told.get("message", ""))[:500], address)
    if not isinstance(told.get("metadata"), dict) or "resourceVersion" not in told["metadata"]:
        raise ProtocolViolation("an event's object has no version", address=address)
    return Event(kind, told)
