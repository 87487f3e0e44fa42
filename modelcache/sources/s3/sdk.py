"""botocore, the only part of S3 that is not ours: credentials, endpoints, regions, requests and answers of the control plane.

Its requests go through `RangeClient`, as the bytes do: one set of proxies, CAs and deadlines, and calls that can be cancelled.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from modelcache.errors import AccessDenied, ModelCacheError, ProtocolViolation, UnknownScheme
from modelcache.patience import Cancellation
from modelcache.sources.s3.control import Place, known_place
from modelcache.sources.s3.locator import KEY_SAFE, ObjectName
from modelcache.sources.s3.options import S3Options
from modelcache.sources.s3.programs import bound_programs
from modelcache.sources.s3.refusals import error_of_client, error_of_sdk, unusable_settings
from modelcache.sources.s3.sigv4 import Key
from modelcache.transport import RangeClient, Timeouts, safe_address
from modelcache.units import MIB

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest, AWSResponse
    from botocore.session import Session

T = TypeVar("T")
MAX_ANSWER_BYTES = 16 * MIB
"""A page of 1,000 keys of 1,024 bytes, percent-encoded, with their other fields, is under 4 MiB."""
RENEW_EVERY_S = 10.0
"""Refused requests of many threads make the credential chain run once in this time."""
_ANSWER = re.compile(rb"<(?:\w+:)?(?:ListBucketResult|Error)\b")
_SCOPE = re.compile(r"Credential=[^/]+/[0-9]{8}/([^/]+)/")
_TOLD = re.compile(r"(?:Credential|Signature)=([^/,]+)")
"""Signature Version 4: `Credential=<access key>/<date>/<region>/<service>/aws4_request`."""
_TRANSPORTS_OWN = frozenset({"host", "user-agent", "connection", "accept-encoding", "content-length"})


@dataclass(frozen=True)
class Connection:
    """A session of the SDK with the credential that its chain found.

    Attributes:
        client: botocore makes its clients' methods at run time; no type of its own has them.
    """

    session: Session = field(repr=False)
    client: Any = field(repr=False)
    anonymous: bool

    def credentials(self) -> Key | None:
        """The credential of this moment: the SDK renews one that is about to expire. None: anonymous.

        Raises NoCredentialsError and whatever the chain raises.
        """
        if self.anonymous:
            return None
        from botocore.exceptions import NoCredentialsError

        found = self.session.get_credentials()
        frozen = None if found is None else found.get_frozen_credentials()
        if frozen is None or not frozen.access_key or not frozen.secret_key:
            raise NoCredentialsError
        return Key(frozen.access_key, frozen.secret_key, frozen.token)


class Sdk:
    """`ControlPlane` by the SDK, which finds what settings leave open. botocore is imported at the first call.

    Args:
        timeouts: for what the credential chain asks over the network by itself (STS, SSO), which can't be cancelled.
    """

    def __init__(self, options: S3Options, transport: RangeClient, timeouts: Timeouts) -> None:
        self._options = options
        self._timeouts = timeouts
        self._transport = transport
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._renewed_at_s = float("-inf")
        self._renewed = False
        self._places: dict[str, Place] = {}
        self._calls = threading.local()

    # -- calls ------------------------------------------------------------------------------------------------------

    def call(self, operation: str, cancel: Cancellation, *, bucket: str, address: str, **parameters: object) -> dict[str, Any]:
        self._calls.cancel, self._calls.sent = cancel, None
        try:
            method: Callable[..., dict[str, Any]] = getattr(self.connection(address).client, operation)
            answer = self._translated(lambda: method(Bucket=bucket, **parameters), address)
            url, authorization = self._calls.sent
            self._places[bucket] = _place_of(url, authorization, str(parameters.get("Key", "")))
            return answer
        finally:
            del self._calls.cancel, self._calls.sent

    def credentials(self, address: str) -> Key | None:
        return self._translated(self.connection(address).credentials, address)

    def place(self, name: ObjectName) -> Place:
        return known_place(self._places, self, name)

    @property
    def endpoint(self) -> str:
        return str(self.connection("s3://").client.meta.endpoint_url)

    def renew(self) -> bool:
        """Run the credential chain again; whether it gave another credential. At most once in RENEW_EVERY_S."""
        if self._options.anonymous or self._options.access_key is not None:
            return False
        with self._lock:
            if time.monotonic() - self._renewed_at_s < RENEW_EVERY_S:
                return self._renewed
            old = self._connection
            fresh = self._connect("s3://")
            self._renewed = old is None or self._differ(old, fresh)
            self._connection = fresh
            self._renewed_at_s = time.monotonic()
            return self._renewed

    def close(self) -> None:
        """Drop the connection; a later call makes a new one."""
        with self._lock:
            if self._connection is not None:
                self._connection.client.close()
            self._connection = None

    # -- inside -----------------------------------------------------------------------------------------------------

    def connection(self, address: str) -> Connection:
        with self._lock:
            if self._connection is None:
                self._connection = self._connect(address)
            return self._connection

    def _connect(self, address: str) -> Connection:
        try:
            import botocore.session
            from botocore import UNSIGNED
            from botocore.config import Config
        except ImportError:
            raise UnknownScheme("`s3://` needs botocore", address=address, hint="pip install 'modelcache[s3]'") from None
        _quieten()
        options = self._options
        style: Any = {True: "path", False: "virtual", None: "auto"}[options.path_style]
        config = Config(
            signature_version=UNSIGNED if options.anonymous else "s3v4",
            retries={"total_max_attempts": 1},  # ours, which can be cancelled: `attempts.py`
            s3={"addressing_style": style},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return self._translated(lambda: self._new_connection(botocore.session.Session(profile=options.profile), config), address)

    def _new_connection(self, session: Session, config: Any) -> Connection:
        options = self._options
        session.register_component("data_loader", _models())
        session.set_default_client_config(self._chain_config())
        if options.access_key is not None and options.secret_key is not None:
            session.set_credentials(options.access_key, options.secret_key, options.session_token)
        bound_programs(session)
        client = session.create_client("s3", region_name=options.region, endpoint_url=options.endpoint, config=config)
        events: Any = client.meta.events  # its stubs know no handler that returns something
        events.register_first("before-send.s3", self._send)
        return Connection(session, client, options.anonymous)

    def _chain_config(self) -> Any:
        from botocore.config import Config

        timeouts = self._timeouts
        return Config(connect_timeout=timeouts.connect_s, read_timeout=timeouts.stall_s, retries={"total_max_attempts": 2})

    def _send(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        """Carry a request of botocore's over our transport (its `before-send` hook takes an answer instead of sending)."""
        from botocore.awsrequest import AWSResponse, HeadersDict

        headers = {name: _text(value) for name, value in request.headers.items() if name.lower() not in _TRANSPORTS_OWN}
        url = str(request.url)
        authorization, token = headers.get("Authorization", ""), headers.get("X-Amz-Security-Token", "")
        self._calls.told = tuple(filter(None, (*_TOLD.findall(authorization), token)))
        answer = self._transport.request(str(request.method), url, headers, self._calls.cancel, MAX_ANSWER_BYTES, follow=False)
        if request.method == "GET" and answer.status == 200 and not _ANSWER.search(answer.body, 0, 4096):
            raise ProtocolViolation("the store's answer is no S3 answer", address=safe_address(url))
        self._calls.sent = (url, authorization)
        headers_of_answer: Any = HeadersDict(dict(answer.headers))
        return AWSResponse(url, answer.status, headers_of_answer, _Raw(answer.body))

    def _differ(self, old: Connection, fresh: Connection) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return fresh.credentials() != old.credentials()
        except (BotoCoreError, ClientError, OSError):
            return True  # the next request says what is wrong with it

    def _translated(self, action: Callable[[], T], address: str) -> T:
        """Run something of botocore's; its errors become ours, without a trace of its own, which quotes requests and answers."""
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            return action()
        except ModelCacheError:
            raise
        except ClientError as error:
            secrets = (*self._options.secrets, *getattr(self._calls, "told", ()))
            ours = error_of_client(error, address=address, secrets=secrets, signed=not self._options.anonymous)
        except BotoCoreError as error:
            ours = error_of_sdk(error, address=address)
        except ResponseParserError:
            ours = ProtocolViolation("the store's answer is no S3 answer", address=address)
        except OSError as error:  # the chain reads files: a web identity token, a configuration
            reason = f"{error.strerror or type(error).__name__}: {error.filename or 'no file'}"
            ours = AccessDenied(f"the S3 credential could not be read ({reason})", address=address)
        except (ValueError, KeyError) as error:  # botocore's for endpoints and regions that it can't read, and for numbers and dates
            answered = getattr(self._calls, "sent", None) is not None
            said = "the store's answer is no S3 answer"
            ours = ProtocolViolation(said, address=address) if answered else unusable_settings(error, address=address)
        raise ours  # out here, so that botocore's, which quotes requests and answers, is not its context


class _Raw:
    """A body in the form that AWSResponse reads."""

    def __init__(self, body: bytes) -> None:
        self._body = BytesIO(body)

    def stream(self, **_: object) -> Iterator[bytes]:
        yield self._body.read()

    def read(self, size: int = -1) -> bytes:
        return self._body.read(size)


def _place_of(url: str, authorization: str, key: str) -> Place:
    """The place of a bucket, from a request to it (`key`: for one object; empty: for the bucket)."""
    parts = urlsplit(url)
    path = parts.path.removesuffix(quote(key, safe=KEY_SAFE)) if key else parts.path.rstrip("/") + "/"
    scope = _SCOPE.search(authorization)
    return Place(f"{parts.scheme}://{parts.netloc}{path}", scope.group(1) if scope else "")


@cache
def _models() -> Any:
    """The SDK's descriptions of services, read once per process: a further client then takes 15 ms of CPU instead of 100."""
    from botocore.loaders import create_loader

    return create_loader()


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _quieten() -> None:
    """Keep botocore's debug records, which quote signatures and answers, out of logs unless somebody chose a level for it."""
    logger = logging.getLogger("botocore")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)
