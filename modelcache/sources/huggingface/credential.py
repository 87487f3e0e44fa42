"""The token of one hub: where it comes from, and how it is renewed."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from modelcache.errors import AccessDenied, BadConfig
from modelcache.sources.huggingface.options import HubOptions, is_token

MAX_TOKEN_BYTES = 16 << 10
"""Tokens of the Hub have 37 characters, those of its OAuth some hundred; a larger file is none."""


class Credential:
    """A fixed token, or what the token file holds. Safe for many threads."""

    def __init__(self, options: HubOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._fixed = options.anonymous or options.token is not None
        self._read = self._fixed
        self._token = None if options.anonymous else options.token

    def token(self) -> str | None:
        """None: anonymous. Raises AccessDenied: the file can't be read; BadConfig: what it holds is no token."""
        with self._lock:
            if not self._read:
                self._token = self._from_file()
                self._read = True
            return self._token

    def headers(self) -> Mapping[str, str]:
        """What a request carries, a secret."""
        token = self.token()
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def renew(self, refused: str | None) -> bool:
        """Whether there is another token than `refused`: somebody signed in again. Raises as `token`."""
        if self._fixed:
            return False
        with self._lock:
            if self._token == refused:
                self._token = self._from_file()
            return self._token != refused

    def _from_file(self) -> str | None:
        path = self._options.token_file
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                text = file.read(MAX_TOKEN_BYTES + 1).decode("ascii", "replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise AccessDenied(f"the hub's token could not be read ({error.strerror})", address=str(path)) from None
        if text and (len(text) > MAX_TOKEN_BYTES or not is_token(text)):
            raise BadConfig("the file of the hub's token holds something else", address=str(path), hint="`hf auth login` writes it anew")
        return text or None
