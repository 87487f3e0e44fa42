"""google-auth, the only part of GCS that is not ours: which credential there is, and its tokens.

Its requests go through `RangeClient`, as all others do: one set of proxies, CAs and deadlines, and calls that can be cancelled.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from modelcache.errors import Cancelled, ModelCacheError, Unavailable, UnknownScheme
from modelcache.patience import Cancellation
from modelcache.sources.gcs.options import GcsOptions
from modelcache.sources.gcs.refusals import error_of_auth
from modelcache.transport import Proxies, RangeClient, Timeouts
from modelcache.units import MIB

T = TypeVar("T")
SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
RENEW_EVERY_S = 10.0
"""Refused requests of many threads make the credential be looked for once in this time."""
METADATA_TIMEOUTS = Timeouts(connect_s=3.0, stall_s=10.0)
"""Of the machine's metadata server; google-auth gives it 3 s, too, three times. Elsewhere nothing answers, and that must not take long."""
NONE_FOUND = "Your default credentials were not found"
"""Beginning of google-auth's text when every place was looked at. A named file that is missing has another, and is an error."""

MAX_ANSWER_BYTES = MIB
_TRANSPORTS_OWN = frozenset({"host", "user-agent", "connection", "accept-encoding", "content-length"})
_log = logging.getLogger(__name__)


class Tokens:
    """One identity, and the headers that prove it. google-auth is imported when they are first asked for. Safe for many threads."""

    def __init__(self, options: GcsOptions, timeouts: Timeouts, proxies: Proxies) -> None:
        self._options = options
        self._request = _AuthTransport(options, timeouts, proxies)
        self._lock = threading.Lock()
        self._looked = False
        self._credentials: Any = None
        self._renewed_at_s = float("-inf")
        self._renewed = False

    @property
    def found(self) -> bool:
        """Whether requests carry a credential, as far as was looked."""
        return self._options.access_token is not None or self._credentials is not None

    def headers(self, address: str, cancel: Cancellation | None = None) -> dict[str, str]:
        """What to send with a request now; nothing if access is anonymous or no credential was found.

        A token that is about to expire is renewed before; while that fails, it is used to its end.

        Raises: AccessDenied, Unavailable, BadConfig, Cancelled; UnknownScheme: google-auth is not installed.
        """
        if self._options.sends_nothing:
            return {}
        if self._options.access_token is not None:
            return {"Authorization": f"Bearer {self._options.access_token}"}
        with self._lock:
            self._request.begin(cancel)
            return self._translated(self._applied, address)

    def renew(self) -> bool:
        """A token was refused: look for the credential again; whether requests will carry another token. At most once in
        RENEW_EVERY_S."""
        with self._lock:
            if self._credentials is None:
                return False
            if time.monotonic() - self._renewed_at_s >= RENEW_EVERY_S:
                self._request.begin(None)
                self._renewed = self._translated(self._look_again, "gs://")
                self._renewed_at_s = time.monotonic()
            return self._renewed

    def close(self) -> None:
        """Close idle connections and forget the credential; a later call looks for it again."""
        with self._lock:
            self._credentials, self._looked = None, False
            self._request.close()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _find(self) -> Any:
        """The credential, or None if there is none anywhere. Raises google-auth's errors."""
        try:
            import google.auth
            from google.auth import exceptions
        except ImportError:
            hint = "pip install 'modelcache[gcs]', or ask for anonymous access"
            raise UnknownScheme("a credential for `gs://` needs google-auth", address="gs://", hint=hint) from None
        _quieten()
        default: Any = google.auth.default
        from_file: Any = google.auth.load_credentials_from_file
        if self._options.credentials_file is not None:
            with warnings.catch_warnings():
                # That such a file can name programs and addresses; google-auth itself does the same to the ones it finds.
                warnings.simplefilter("ignore", DeprecationWarning)
                return from_file(str(self._options.credentials_file), scopes=[SCOPE], request=self._request)[0]
        if self._options.credentials_json is not None:
            return _of_text(self._options.credentials_json)
        try:
            return default(scopes=[SCOPE], request=self._request)[0]
        except exceptions.DefaultCredentialsError as error:
            if str(error).startswith(NONE_FOUND):
                return None
            raise

    def _applied(self) -> dict[str, str]:
        if not self._looked:
            self._credentials = self._find()
            self._looked = True
        if self._credentials is None:
            return {}
        from google.auth.credentials import TokenState

        state = self._credentials.token_state
        if state is TokenState.INVALID:
            self._credentials.refresh(self._request)
        elif state is TokenState.STALE:
            self._refresh_early()
        headers: dict[str, str] = {}
        self._credentials.apply(headers)
        return headers

    def _refresh_early(self) -> None:
        try:
            self._translated(lambda: self._credentials.refresh(self._request), "gs://")
        except Unavailable as error:
            _log.warning("the Google token expires soon and could not be renewed yet: %s", error)

    def _look_again(self) -> bool:
        old = self._credentials.token
        fresh = self._find()
        if fresh is None:
            return False
        fresh.refresh(self._request)
        self._credentials = fresh
        return bool(fresh.token != old)

    def _translated(self, action: Callable[[], T], address: str) -> T:
        """Run something of google-auth's; its errors become ours, without a trace of its own, which quote answers and files."""
        try:
            return action()
        except ModelCacheError:
            raise
        except Exception as error:
            if not _is_of_credentials(error):
                raise
            ours = error_of_auth(error, address=address, cause=self._request.failure)
        raise ours  # out here, so that google-auth's is not its context


def _of_text(text: str) -> Any:
    """Of one of the kinds in `options.TAKEN`. Raises google-auth's errors."""
    from google.oauth2 import credentials, service_account

    told = json.loads(text)
    of_user: Any = credentials.Credentials.from_authorized_user_info
    of_account: Any = service_account.Credentials.from_service_account_info
    return of_user(told, scopes=[SCOPE]) if told["type"] == "authorized_user" else of_account(told, scopes=[SCOPE])


class _AuthTransport:
    """`google.auth.transport.Request` over our transport. Plain http goes to the machine's metadata server and never through a proxy."""

    def __init__(self, options: GcsOptions, timeouts: Timeouts, proxies: Proxies) -> None:
        ca_file = options.ca_file if options.endpoint is None else None
        self._https = RangeClient(timeouts, ca_file=ca_file, proxies=proxies)
        self._metadata = RangeClient(METADATA_TIMEOUTS)
        self._cancel = Cancellation()
        self.failure: ModelCacheError | None = None

    def begin(self, cancel: Cancellation | None) -> None:
        self._cancel = cancel or Cancellation()
        self.failure = None

    def __call__(
        self, url: str, method: str = "GET", body: Any = None, headers: Mapping[str, str] | None = None, timeout: Any = None, **_: Any
    ) -> _Answer:
        from google.auth import exceptions

        client = self._https if url.startswith("https:") else self._metadata
        sent = {name: value for name, value in (headers or {}).items() if name.lower() not in _TRANSPORTS_OWN}
        try:
            if method == "POST":
                data = body.encode() if isinstance(body, str) else body or b""
                answer = client.post(url, sent, data, self._cancel, MAX_ANSWER_BYTES)
            else:
                answer = client.request(method, url, sent, self._cancel, MAX_ANSWER_BYTES, follow=False)
        except Cancelled:
            raise
        except ModelCacheError as error:
            self.failure = error
            raise exceptions.TransportError(type(error).__name__) from None  # type: ignore[no-untyped-call]  # google-auth's
        return _Answer(answer.status, answer.headers, answer.body)

    def close(self) -> None:
        self._https.close()
        self._metadata.close()


@dataclass(frozen=True, slots=True)
class _Answer:
    """`google.auth.transport.Response`."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    data: bytes = field(repr=False)


def _is_of_credentials(error: Exception) -> bool:
    """Whether google-auth raised it for a file, key or answer that it can't use; not a defect of ours."""
    from google.auth import exceptions

    return isinstance(error, (exceptions.GoogleAuthError, OSError, ValueError, KeyError))


def _quieten() -> None:
    """Keep google-auth's warnings (no project, no metadata server: neither is needed) out of logs unless somebody chose a level."""
    logger = logging.getLogger("google.auth")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)
