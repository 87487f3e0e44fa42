"""A store whose endpoint, region and key are all written down: nothing is left for an SDK to find, and none is imported."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree

from modelcache.errors import InvalidUri, OriginBusy, ProtocolViolation
from modelcache.patience import Cancellation
from modelcache.sources.s3.control import Place, known_place
from modelcache.sources.s3.locator import KEY_SAFE, ObjectName
from modelcache.sources.s3.options import S3Options
from modelcache.sources.s3.refusals import Refusal, clean_code
from modelcache.sources.s3.sigv4 import Key, signed_headers
from modelcache.transport import RangeClient, Response, safe_address
from modelcache.units import MIB

MAX_ANSWER_BYTES = 16 * MIB
"""A page of 1,000 keys of 1,024 bytes, percent-encoded, with their other fields, is under 4 MiB."""
LISTED_FIELDS = ("Key", "Size", "ETag", "LastModified", "ChecksumType", "StorageClass")
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")  # what botocore lets through
_BROKEN_OFF = re.compile(rb"<(?:\w+:)?(?:ListBucketResult|Error)\b")
_REGION = re.compile(r"[A-Za-z0-9-]{1,64}")
ELSEWHERE = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "400", "301"})
"""Codes, or for want of one statuses, with which a store tells that a request was signed for another region than its own."""


class FixedEndpoint:
    """`ControlPlane` for `S3Options` that are complete (`S3Options.complete`): path-style requests of our own.

    What a client of botocore's does for these two calls, without the 0.3 s of CPU that making one takes
    (docs/design/006-s3-without-sdk.md).
    """

    def __init__(self, options: S3Options, transport: RangeClient) -> None:
        assert options.endpoint is not None
        assert options.region is not None
        self._base = options.endpoint.rstrip("/")
        self._region = options.region
        self._key = options.key
        self._transport = transport
        self._places: dict[str, Place] = {}

    @property
    def endpoint(self) -> str:
        return self._base

    def call(self, operation: str, cancel: Cancellation, *, bucket: str, address: str, **parameters: object) -> dict[str, Any]:
        if not _BUCKET.fullmatch(bucket):
            raise InvalidUri("the store's rules forbid such a name", address=address, got=ascii(bucket[:100]))
        texts = {name: str(value) for name, value in parameters.items()}
        request = {"list_objects_v2": _list_request, "head_object": _head_request}[operation](texts)
        place = self._places.get(bucket) or Place(f"{self._base}/{bucket}/", self._region)
        answer = self._sent(request, place, cancel)
        if answer.status != 200 and (region := self._told_region(request, answer, place, cancel)) is not None:
            place = self._places[bucket] = Place(place.base_url, region)
            answer = self._sent(request, place, cancel)
        if answer.status != 200:
            self._refuse(request, answer, address)
        self._places[bucket] = place
        return _listed(answer, address) if request.method == "GET" else {"ResponseMetadata": {"HTTPHeaders": dict(answer.headers)}}

    def credentials(self, address: str) -> Key | None:
        return self._key

    def place(self, name: ObjectName) -> Place:
        return known_place(self._places, self, name)

    def renew(self) -> bool:
        return False

    def close(self) -> None:
        self._places.clear()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _sent(self, request: _Request, place: Place, cancel: Cancellation) -> Response:
        url = f"{place.base_url}{request.path}" if request.path else place.base_url.removesuffix("/")  # as botocore asks for a bucket
        if request.query:
            url += "?" + "&".join(f"{name}={quote(value, safe='~')}" for name, value in request.query.items())
        headers: Mapping[str, str] = request.headers
        if self._key is not None:
            headers = signed_headers(request.method, url, headers, self._key, place.region)
        return self._transport.request(request.method, url, headers, cancel, MAX_ANSWER_BYTES, follow=False)

    def _told_region(self, request: _Request, answer: Response, place: Place, cancel: Cancellation) -> str | None:
        """The region that the store wants the request signed for; None: it is about something else.

        An answer to HEAD has no body to say so: a listing is asked then.
        """
        code, _, region = _error_fields(answer)
        if self._key is None or (code or str(answer.status)) not in ELSEWHERE:
            return None
        region = answer.headers.get("x-amz-bucket-region") or region
        if region is None and request.method == "HEAD":
            asked = self._sent(_list_request({"MaxKeys": "1"}), place, cancel)
            region = asked.headers.get("x-amz-bucket-region") or _error_fields(asked)[2]
        return region if region is not None and region != place.region and _REGION.fullmatch(region) else None

    def _refuse(self, request: _Request, answer: Response, address: str) -> NoReturn:
        code, said, _ = _error_fields(answer)
        refusal = Refusal(request.operation, answer.status, answer.headers, clean_code(code or str(answer.status)), said)
        secrets = () if self._key is None else (self._key.access_key, self._key.secret_key, self._key.token or "")
        raise refusal.error(address=address, secrets=filter(None, secrets), signed=self._key is not None)


class _Request:
    """One operation, before it is known where."""

    def __init__(self, operation: str, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> None:
        self.operation = operation
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers


def _list_request(parameters: Mapping[str, str]) -> _Request:
    names = {"Prefix": "prefix", "ContinuationToken": "continuation-token", "MaxKeys": "max-keys"}
    query = {"list-type": "2", "encoding-type": "url"} | {names[name]: value for name, value in parameters.items()}
    return _Request("ListObjectsV2", "GET", "", query, {})


def _head_request(parameters: Mapping[str, str]) -> _Request:
    query = {"versionId": parameters["VersionId"]} if "VersionId" in parameters else {}
    headers = {"x-amz-checksum-mode": parameters["ChecksumMode"]} if "ChecksumMode" in parameters else {}
    return _Request("HeadObject", "HEAD", quote(parameters["Key"], safe=KEY_SAFE), query, headers)


def _listed(answer: Response, address: str) -> dict[str, Any]:
    root = _tree(answer.body)
    if root is None or _name(root) != "ListBucketResult":
        if _BROKEN_OFF.search(answer.body, 0, 4096):  # a store that has begun to answer has no status left to fail with
            raise OriginBusy("the store's answer broke off", address=address)
        raise ProtocolViolation("the store's answer is no S3 answer", address=safe_address(answer.url))
    page = {_name(each): each.text or "" for each in root}
    decode = unquote_plus if page.get("EncodingType") == "url" else str
    contents = []
    for element in root:
        if _name(element) == "Contents":
            fields: dict[str, Any] = {_name(each): each.text or "" for each in element if _name(each) in LISTED_FIELDS}
            algorithms = [each.text or "" for each in element if _name(each) == "ChecksumAlgorithm"]
            try:
                typed = {"Key": decode(fields["Key"]), "Size": int(fields["Size"])}
                if "LastModified" in fields:
                    typed["LastModified"] = datetime.datetime.fromisoformat(fields["LastModified"])
            except (KeyError, ValueError) as error:
                raise ProtocolViolation(f"the store lists an object that can't be read ({error})", address=address) from None
            contents.append(fields | typed | {"ChecksumAlgorithm": algorithms})
    more = {"NextContinuationToken": page["NextContinuationToken"]} if "NextContinuationToken" in page else {}
    return {"Contents": contents, "IsTruncated": page.get("IsTruncated") == "true", **more}


def _error_fields(answer: Response) -> tuple[str | None, str, str | None]:
    """Code, message and region of an error answer, as far as it states them."""
    root = _tree(answer.body)
    if root is None or _name(root) != "Error":
        return None, "", None
    fields = {_name(each): each.text or "" for each in root}
    return fields.get("Code") or None, fields.get("Message", ""), fields.get("Region") or None


def _tree(body: bytes) -> ElementTree.Element | None:
    if not body or b"<!DOCTYPE" in body:
        return None
    try:
        return ElementTree.fromstring(body)  # noqa: S314 - without a document type there are no entities to expand
    except ElementTree.ParseError:
        return None


def _name(element: ElementTree.Element) -> str:
    """Without its namespace, which some stores leave out."""
    return element.tag.rpartition("}")[2]
