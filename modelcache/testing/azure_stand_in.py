"""A container of Azure Blob Storage, and Entra's token endpoint, on a `FaultServer`: who may do what, and with what it was asked.

Written from Microsoft's "Blob service REST API" (List Blobs, Get Blob, Authorize with Shared Key). Azurite is the real thing, and knows of
every key alone; see `modelcache.testing.servers.azurite`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from modelcache.testing.fault_server import Call, FaultServer, Received, Reply

CONTAINER = "models"
ANYONE = ""
"""In `rights`: whoever sends no credential."""
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_SIGNED = ("content-encoding", "content-language", "content-length", "content-md5", "content-type", "date", "if-modified-since",
           "if-match", "if-none-match", "if-unmodified-since", "range")  # fmt: skip


@dataclass(slots=True)
class AzureStandIn:
    """A container of the server, below the path of an account.

    Attributes:
        rights: what a credential may do, of `list` and `get`: an account's key, the `sig` of a signature, or a token.
        principal: client id and secret that get tokens.
        issued: tokens that were given, in order.
        expires_s: what is said of the next ones.
    """

    server: FaultServer
    account: str = "account"
    rights: dict[str, set[str]] = field(default_factory=dict)
    principal: tuple[str, str] = ("", "")
    issued: list[str] = field(default_factory=list)
    expires_s: int = 3600
    kept: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server.fail(f"/{self.account}/{CONTAINER}", self._list)

    @property
    def endpoint(self) -> str:
        return f"{self.server.endpoint}/{self.account}"

    def signs_in(self, tenant: str) -> None:
        """Have this tenant's principals sign in here, too."""
        self.server.fail(f"/{tenant}/oauth2/v2.0/token", self._token)

    def put(self, name: str, data: bytes) -> None:
        self.kept[name] = data
        self.server.fail(f"/{self.account}/{CONTAINER}/{quote(name)}", lambda call: self._blob(call, name))

    def _list(self, call: Call) -> None:
        if self._refused(call, "list"):
            return
        prefix = _query(call.received).get("prefix", "")
        rows = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Etag>{etag(data)}</Etag><Content-Length>{len(data)}</Content-Length>"
            "<Last-Modified>Mon, 01 Jan 2024 00:00:00 GMT</Last-Modified><BlobType>BlockBlob</BlobType></Properties></Blob>"
            for name, data in sorted(self.kept.items())
            if name.startswith(prefix)
        )
        body = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>{rows}</Blobs><NextMarker /></EnumerationResults>'
        call.reply(Reply(200, {"Content-Type": "application/xml"}, body.encode()))

    def _blob(self, call: Call, name: str) -> None:
        if self._refused(call, "get"):
            return
        data, headers = self.kept[name], call.received.headers
        told = {"ETag": etag(data), "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "x-ms-blob-type": "BlockBlob"}
        asked = _RANGE.fullmatch(headers.get("x-ms-range", headers.get("range", "")))
        if asked is None:
            call.reply(Reply(200, told | {"Content-Length": str(len(data))}, data))
            return
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        call.reply(Reply(206, told | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]))

    def _token(self, call: Call) -> None:
        form = {name: values[0] for name, values in parse_qs(call.received.body.decode()).items()}
        if (form.get("client_id"), form.get("client_secret")) != self.principal:
            call.reply(_json(401, {"error": "invalid_client"}))
            return
        self.issued.append(f"token-{len(self.issued) + 1}-of-the-test")
        self.rights[self.issued[-1]] = self.rights[self.principal[1]]
        call.reply(_json(200, {"token_type": "Bearer", "access_token": self.issued[-1], "expires_in": self.expires_s}))

    def _refused(self, call: Call, right: str) -> bool:
        credential = self.credential_of(call.received)
        allowed = right in self.rights.get(credential, set())
        if not allowed:
            nobody = "PublicAccessNotPermitted" if credential == ANYONE else "AuthenticationFailed"
            code = "AuthorizationPermissionMismatch" if credential in self.rights else nobody
            said = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>no</Message></Error>'
            headers = {"x-ms-error-code": code, "Content-Type": "application/xml"}
            call.reply(Reply(409 if code == "PublicAccessNotPermitted" else 403, headers, said.encode()))
        return not allowed

    def credential_of(self, received: Received) -> str:
        """Which of `rights` it came with, or something else."""
        kind, _, told = received.headers.get("authorization", "").partition(" ")
        if kind == "SharedKey":
            fitting = [key for key in self.rights if told == f"{self.account}:{signature(self.account, key, received)}"]
            return fitting[0] if fitting else "of nobody"
        return told if kind == "Bearer" else _query(received).get("sig", ANYONE)


def signature(account: str, key: str, received: Received) -> str:
    """Of a request, as "Authorize with Shared Key" has it; empty where the key is no base64."""
    headers, url = received.headers, urlsplit(received.target)
    named = {**headers, "content-length": headers.get("content-length", "").replace("0", "") and headers["content-length"]}
    own = [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("x-ms-")]
    asked = [f"{name.lower()}:{value}" for name, value in sorted(parse_qsl(url.query))]
    text = "\n".join([received.method, *(named.get(name, "") for name in _SIGNED), *own, f"/{account}{url.path}", *asked])
    try:
        secret = base64.b64decode(key, validate=True)
    except ValueError:
        return ""
    return base64.b64encode(hmac.new(secret, text.encode(), hashlib.sha256).digest()).decode()


def etag(data: bytes) -> str:
    """Of a blob's content, so that an impostor can have the same."""
    return f'"0x{hashlib.md5(data).hexdigest()[:15].upper()}"'


def _query(received: Received) -> dict[str, str]:
    return {name: unquote(value) for name, value in parse_qsl(urlsplit(received.target).query)}


def _json(status: int, fields: dict[str, object]) -> Reply:
    return Reply(status, {"Content-Type": "application/json"}, json.dumps(fields).encode())
