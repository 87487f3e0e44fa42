"""What fake-gcs-server doesn't know of Google Cloud Storage: tokens and who may do what, preconditions, pages; on a `FaultServer`."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import google_crc32c

from modelcache.testing.fault_server import Call, FaultServer, Reply

BUCKET = "models"
TOKEN_PATH = "/token"
ANYONE = ""
"""In `rights`: whoever sends no token."""
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass(slots=True)
class Kept:
    """An object: one generation, and fields that its record has beside the usual ones."""

    data: bytes
    generation: int
    fields: Mapping[str, Any]


@dataclass(slots=True)
class GcsStandIn:
    """A bucket of the server.

    Attributes:
        rights: token → what it may do, of `list` and `get`.
        page_objects: most objects on a page.
        issued: tokens that the token service gave, in order.
        expires_s: what it says of the next ones.
    """

    server: FaultServer
    rights: dict[str, set[str]] = field(default_factory=lambda: {ANYONE: {"list", "get"}})
    page_objects: int = 1000
    issued: list[str] = field(default_factory=list)
    expires_s: int = 3600
    kept: dict[str, Kept] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server.fail(self.list_path, self._list)
        self.server.fail(TOKEN_PATH, self._token)

    @property
    def list_path(self) -> str:
        return f"/storage/v1/b/{BUCKET}/o"

    def path(self, name: str) -> str:
        return f"{self.list_path}/{quote(name, safe='')}"

    def put(self, name: str, data: bytes, **fields: Any) -> int:
        """Add an object or replace it; its generation."""
        generation = self.kept[name].generation + 1 if name in self.kept else 1_700_000_000_000_001
        self.kept[name] = Kept(data, generation, fields)
        self.server.fail(self.path(name), lambda call: self._object(call, name))
        return generation

    def _list(self, call: Call) -> None:
        if self._refused(call, "list"):
            return
        query = _query(call)
        found = sorted(name for name in self.kept if name.startswith(query.get("prefix", "")))
        start = int(query.get("pageToken", "0"))
        stop = start + min(self.page_objects, int(query["maxResults"]))
        answer: dict[str, Any] = {"kind": "storage#objects", "items": [self._record(name) for name in found[start:stop]]}
        if stop < len(found):
            answer["nextPageToken"] = str(stop)
        call.reply(_json(200, answer))

    def _object(self, call: Call, name: str) -> None:
        query, kept = _query(call), self.kept[name]
        if self._refused(call, "get"):
            return
        if query.get("generation", str(kept.generation)) != str(kept.generation):
            call.reply(refusal(404, "notFound", f"No such object: {BUCKET}/{name}"))
        elif query.get("ifGenerationMatch", str(kept.generation)) != str(kept.generation):
            call.reply(refusal(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold."))
        elif query.get("alt") == "media":
            call.reply(_media(call, kept))
        else:
            call.reply(_json(200, self._record(name)))

    def _token(self, call: Call) -> None:
        self.issued.append(f"ya29.token-{len(self.issued) + 1}-of-the-test")
        call.reply(_json(200, {"access_token": self.issued[-1], "expires_in": self.expires_s, "token_type": "Bearer"}))

    def _record(self, name: str) -> dict[str, Any]:
        kept = self.kept[name]
        record = {"name": name, "size": str(len(kept.data)), "generation": str(kept.generation), "metageneration": "1"}
        return {**record, "crc32c": crc32c(kept.data), **kept.fields}

    def _refused(self, call: Call, right: str) -> bool:
        token = call.received.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.rights:
            call.reply(refusal(401, "authError" if token else "required", "Invalid Credentials" if token else "Anonymous caller"))
        elif right not in self.rights[token]:
            call.reply(refusal(403, "forbidden", f"me@project.example does not have storage.objects.{right} access."))
        return token not in self.rights or right not in self.rights[token]


def crc32c(data: bytes) -> str:
    """As the store writes it, by Google's own implementation."""
    checksum: Any = google_crc32c.Checksum  # it has types of its own, but not all
    return base64.b64encode(checksum(data).digest()).decode()


def refusal(status: int, reason: str, message: str) -> Reply:
    """An error as the JSON API writes it."""
    errors = [{"message": message, "domain": "global", "reason": reason}]
    return _json(status, {"error": {"code": status, "message": message, "errors": errors}})


def _media(call: Call, kept: Kept) -> Reply:
    headers = {"X-Goog-Generation": str(kept.generation), "X-Goog-Hash": f"crc32c={crc32c(kept.data)}"}
    asked = _RANGE.fullmatch(call.received.headers.get("range", ""))
    assert asked is not None
    first, last = int(asked[1]), int(asked[2])
    return Reply(206, headers | {"Content-Range": f"bytes {first}-{last}/{len(kept.data)}"}, kept.data[first : last + 1])


def _query(call: Call) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(urlsplit(call.received.target).query).items()}


def _json(status: int, fields: Mapping[str, Any]) -> Reply:
    return Reply(status, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(fields, indent=1).encode())
