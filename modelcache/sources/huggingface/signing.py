"""Signers of the bulk plane: the hub's own URL with the token, or a file's place at the CDN with nothing added."""

from __future__ import annotations

from collections.abc import Mapping

from modelcache.abc.source import RemoteFile
from modelcache.patience import Cancellation
from modelcache.sources.huggingface.credential import Credential
from modelcache.sources.huggingface.places import Place, Places
from modelcache.transport import SignedRequest


class AtHub:
    """Of one request for a file that the hub serves itself, or redirects to wherever it likes. Used by one thread."""

    def __init__(self, base_url: str, credential: Credential) -> None:
        self._base_url = base_url
        self._credential = credential
        self._token: str | None = None

    def sign(self, method: str, locator: str, headers: Mapping[str, str]) -> SignedRequest:
        """Raises: AccessDenied or BadConfig if the token can't be read."""
        self._token = self._credential.token()
        own = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        return SignedRequest(f"{self._base_url}/{locator}", {**headers, **own})

    def renew(self) -> bool:
        """Whether somebody signed in again."""
        return self._credential.renew(self._token)


class AtPlace:
    """Of one request for an LFS file. Used by one thread."""

    def __init__(self, file: RemoteFile, places: Places, hub: AtHub, cancel: Cancellation) -> None:
        self._file = file
        self._places = places
        self._hub = hub
        self._cancel = cancel
        self._place: Place | None = None

    def sign(self, method: str, locator: str, headers: Mapping[str, str]) -> SignedRequest:
        """Raises: what `Source.open` does if the hub refuses to say where the file is."""
        self._place = self._places.of(self._file, self._cancel)
        if self._place.url is None:
            return self._hub.sign(method, locator, headers)
        return SignedRequest(self._place.url, headers)

    def renew(self) -> bool:
        """The place's URL was refused, so it has expired: the hub gives another. True, unless the hub itself refused."""
        if self._place is None or self._place.url is None:
            return self._hub.renew()
        self._places.forget(self._file.locator, self._place)
        return True
