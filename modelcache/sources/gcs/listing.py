"""From a URI to exact generations: one object, or everything under a prefix."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

from modelcache.abc.source import RemoteFile
from modelcache.errors import AccessDenied, InvalidUri, NotFound, ProtocolViolation
from modelcache.paths import check_tree
from modelcache.patience import Cancellation
from modelcache.sources.attempts import attempted
from modelcache.sources.gcs.locator import ObjectName, bucket_url
from modelcache.sources.gcs.records import FIELDS, ObjectRecord, check_servable, object_record, page
from modelcache.sources.gcs.refusals import error_of_answer
from modelcache.sources.gcs.tokens import Tokens
from modelcache.sources.prefixes import MAX_OBJECTS, Listed, none_selected, prefix_of, selected_below
from modelcache.transport import RangeClient, Response
from modelcache.units import MIB
from modelcache.uri import StorageUri

PAGE_OBJECTS = 1000
"""The most that the store gives at once."""
MAX_PAGES = 10 * MAX_OBJECTS // PAGE_OBJECTS
"""Pages may be shorter, and objects on them folders or unselected."""
MAX_ANSWER_BYTES = 16 * MIB
"""A page of 1,000 names of 1,024 bytes, escaped, with their other fields, is under 8 MiB."""


class Lister:
    """One listing of one URI."""

    def __init__(self, base_url: str, tokens: Tokens, transport: RangeClient, uri: StorageUri, cancel: Cancellation) -> None:
        self._base_url = base_url
        self._tokens = tokens
        self._transport = transport
        self._uri = uri
        self._cancel = cancel
        self._bucket = uri.authority

    def files(self) -> tuple[RemoteFile, ...]:
        """The selected objects, sorted by path: the one whose name is the URI's path, else everything below that path.

        Raises: what `Source.list` promises.
        """
        doubt: AccessDenied | None = None
        if self._uri.path:
            try:
                exact = self._exact()
                if exact is not None:
                    return (exact,)
            except AccessDenied as error:
                doubt = error  # to a credential that may not list, the store denies names that don't exist; listing tells
        return self._below(doubt)

    # -- one object -------------------------------------------------------------------------------------------------

    def _exact(self) -> RemoteFile | None:
        """The object whose name is the URI's path; None: there is none."""
        name = ObjectName(self._bucket, self._uri.path, self._uri.revision)
        url = name.url(self._base_url)
        try:
            answer = self._get(f"{url}{'&' if '?' in url else '?'}{urlencode({'fields': FIELDS})}", name.address, "the object")
        except NotFound:
            if name.generation is not None:
                raise
            return None
        record = object_record(answer.body, address=name.address)
        if record.name != name.name or name.generation not in (None, record.generation):
            raise ProtocolViolation("the store describes another object than was asked for", address=name.address, got=ascii(record.name))
        path = name.name.rpartition("/")[2]
        check_tree([path], address=name.address)
        if not self._uri.selects(path):
            raise none_selected(self._uri)
        return self._file(path, record)

    # -- a prefix ---------------------------------------------------------------------------------------------------

    def _below(self, doubt: AccessDenied | None) -> tuple[RemoteFile, ...]:
        selected = selected_below(self._uri, self._listed(), doubt)
        return tuple(self._file(path, selected[path]) for path in sorted(selected))

    def _listed(self) -> Iterator[Listed[ObjectRecord]]:
        """Every live object under the prefix, page by page."""
        token = ""
        for _ in range(MAX_PAGES):
            query = {"prefix": prefix_of(self._uri), "maxResults": PAGE_OBJECTS, "fields": f"nextPageToken,items({FIELDS})"}
            query |= {"pageToken": token} if token else {}
            answer = self._get(f"{bucket_url(self._base_url, self._bucket)}/o?{urlencode(query)}", str(self._uri), "the bucket")
            found = page(answer.body, address=str(self._uri))
            for record in found.objects:
                yield Listed(record.name, record.folder_marker, record)
            if not found.next_token:
                return
            if found.next_token == token:
                raise ProtocolViolation("the store's listing does not go on", address=str(self._uri))
            token = found.next_token
        raise InvalidUri(
            f"over {MAX_PAGES:,} pages of objects are under one URI", address=str(self._uri), hint="name a folder further down"
        )

    def _file(self, path: str, record: ObjectRecord) -> RemoteFile:
        name = ObjectName(self._bucket, record.name, record.generation)
        check_servable(record, name.address)
        return RemoteFile(path, record.size_bytes, name.locator, record.generation, record.digests)

    # -- asking -----------------------------------------------------------------------------------------------------

    def _get(self, url: str, address: str, what: str) -> Response:
        """One control call. Raises what an answer other than 200 means."""

        def ask() -> Response:
            headers = self._tokens.headers(address, self._cancel)
            answer = self._transport.request("GET", url, headers, self._cancel, MAX_ANSWER_BYTES, follow=False)
            if answer.status != 200:
                raise error_of_answer(answer, address=address, what=what, credential_found=self._tokens.found)
            return answer

        return attempted(ask, self._tokens.renew, self._cancel)
