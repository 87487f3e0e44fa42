"""Azure's blobs for callers: by Azure's own client, with the caller's key and nothing else.

adlfs, which serves the owner, takes what it isn't given from the process's variables, and asks for the machine's identity then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from modelcache.errors import AccessDenied, ProtocolViolation
from modelcache.sources.any_fsspec.azure_key import AzureKey
from modelcache.sources.any_fsspec.sessions import Ways, session_of
from modelcache.transport import error_of_status

Filesystem = Any
SCOPE = "https://storage.azure.com/.default"
EARLY_S = 300
"""A token is renewed so long before its end: about what requests that are under way may last."""
DENIED_STATUSES = (400, 401, 403)
"""Of a token endpoint that knows the tenant, the client or its secret not (RFC 6749 §5.2)."""


class Token(NamedTuple):
    """`azure.core.credentials.AccessToken`, whose fields the SDK reads by name."""

    token: str
    expires_on: int


def opener(key: AzureKey, endpoint: str, ways: Ways) -> Callable[..., Filesystem]:
    """What makes filesystems of one endpoint, for one thread each; they share what they signed in with.

    Raises: ImportError: Azure's client is not installed.
    """
    from azure.storage.blob import BlobServiceClient  # type: ignore[import-not-found,import-untyped,unused-ignore]

    credential = _credential(key, ways)

    def make(**_: object) -> Filesystem:
        from azure.core.pipeline.transport import RequestsTransport  # type: ignore[import-not-found,import-untyped,unused-ignore]

        session = session_of(ways)
        transport = RequestsTransport(session=session, session_owner=False)
        client = BlobServiceClient(endpoint, credential=credential, transport=transport, retry_total=0)
        return _filesystem()(client, session)

    return make


def _credential(key: AzureKey, ways: Ways) -> Any:
    """None: nobody's. Of an account key the account is known by now."""
    from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential  # type: ignore[import-not-found,import-untyped,unused-ignore]

    if key.client_secret is not None:
        return Principal(key, ways)
    if key.token is not None:
        return FixedToken(key.token, key.token_ends_at_s)
    if key.sas is not None:
        return AzureSasCredential(key.sas)
    return None if key.account_key is None else AzureNamedKeyCredential(str(key.account), key.account_key)


class FixedToken:
    """A token that somebody else got, until it ends."""

    def __init__(self, token: str, ends_at_s: int) -> None:
        self._token = token
        self._ends_at_s = ends_at_s

    def get_token(self, *scopes: str, **_: object) -> Token:
        """Raises AccessDenied: it has ended."""
        now_s = int(time.time())
        if 0 < self._ends_at_s <= now_s:
            raise AccessDenied("the access token for Azure has ended", hint="have the secret renewed, or let it hold a principal")
        return Token(self._token, self._ends_at_s or now_s + EARLY_S)


class Principal:
    """Signs in with a client secret (OAuth 2.0, RFC 6749 §4.4) at its own tenant, whatever an answer of the store's names. Thread-safe."""

    def __init__(self, key: AzureKey, ways: Ways) -> None:
        self._url = f"{key.authority.rstrip('/')}/{key.tenant_id}/oauth2/v2.0/token"
        self._form = {"grant_type": "client_credentials", "client_id": key.client_id, "client_secret": key.client_secret, "scope": SCOPE}
        self._ways = ways
        self._lock = threading.Lock()
        self._kept: Token | None = None

    def get_token(self, *scopes: str, **_: object) -> Token:
        """Raises AccessDenied, OriginBusy, ProtocolViolation; what `requests` raises."""
        with self._lock:
            if self._kept is None or time.time() >= self._kept.expires_on - EARLY_S:
                self._kept = self._asked()
            return self._kept

    def _asked(self) -> Token:
        with session_of(self._ways) as session:
            answer = session.post(self._url, data=self._form, allow_redirects=False)
            told = _json(answer)
        if answer.status_code in DENIED_STATUSES:
            raise AccessDenied(f"Azure refused the principal (status {answer.status_code})", address=self._url)
        if answer.status_code != 200:
            raise error_of_status(answer.status_code, dict(answer.headers), address=self._url, listed=False)
        token, lasts_s = told.get("access_token"), told.get("expires_in")
        if not isinstance(token, str) or not str(lasts_s).isdecimal():
            raise ProtocolViolation("the token endpoint's answer holds no token", address=self._url)
        return Token(token, int(time.time()) + int(str(lasts_s)))


def _json(answer: Any) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _filesystem() -> Any:
    """A class of fsspec's."""
    from azure.core.exceptions import ResourceNotFoundError  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from fsspec import AbstractFileSystem

    class Blobs(AbstractFileSystem):  # type: ignore[misc,unused-ignore]  # fsspec has no types
        """Names are `CONTAINER/BLOB`, as adlfs has them."""

        protocol = "abfs"
        cachable = False

        def __init__(self, client: Any, session: Any, **_: object) -> None:
            super().__init__()  # without what fsspec's own configuration says of `abfs`
            self.service_client = client
            self.session = session

        def info(self, path: str, **_: object) -> dict[str, Any]:
            container, name = _split(path)
            if name:
                try:
                    return _told(path, self.service_client.get_blob_client(container, name).get_blob_properties())
                except ResourceNotFoundError:
                    pass
            for _each in self.service_client.get_container_client(container).list_blob_names(name_starts_with=_inside(name)):
                return {"name": path, "type": "directory", "size": 0}
            raise FileNotFoundError(path)

        def find(self, path: str, **_: object) -> dict[str, Any]:
            container, name = _split(path)
            listed = self.service_client.get_container_client(container).list_blobs(name_starts_with=_inside(name), include=["metadata"])
            return {f"{container}/{each.name}": _told(f"{container}/{each.name}", each) for each in listed}

        def _open(self, path: str, *_: object, **__: object) -> _Opened:
            container, name = _split(path)
            return _Opened(self.service_client.get_blob_client(container, name))

    return Blobs


class _Opened:
    """One blob, read from where it was sought."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._at = 0

    def seek(self, at: int) -> None:
        self._at = at

    def read(self, size_bytes: int) -> bytes:
        data: bytes = self._client.download_blob(offset=self._at, length=size_bytes, max_concurrency=1).readall()
        self._at += len(data)
        return data

    def close(self) -> None:
        """Its instance has the connections."""


def _split(path: str) -> tuple[str, str]:
    container, _, name = path.lstrip("/").partition("/")
    return container, name


def _inside(name: str) -> str:
    return f"{name.rstrip('/')}/" if name else ""


def _told(path: str, properties: Any) -> dict[str, Any]:
    """As adlfs has it. Accounts with directories list those as empty blobs with a mark of Hadoop's."""
    directory = (properties.metadata or {}).get("hdi_isfolder") == "true"
    settings = properties.content_settings
    return {
        "name": path,
        "type": "directory" if directory else "file",
        "size": properties.size,
        "etag": properties.etag,
        "content_settings": {"content_md5": settings.content_md5, "content_encoding": settings.content_encoding},
    }
