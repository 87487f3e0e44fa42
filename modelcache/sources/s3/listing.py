"""From a URI to exact versions: one object, or everything under a prefix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from modelcache.abc.source import RemoteFile
from modelcache.errors import AccessDenied, InvalidUri, ModelCacheError, NotFound, ProtocolViolation
from modelcache.paths import check_tree
from modelcache.patience import Cancellation
from modelcache.sources.attempts import attempted
from modelcache.sources.prefixes import MAX_OBJECTS, Listed, none_selected, prefix_of, selected_below
from modelcache.sources.s3.control import ControlPlane
from modelcache.sources.s3.heads import KNOWN_ALGORITHMS, MAX_NAME_CHARACTERS, ListedObject, ObjectHead, object_head
from modelcache.sources.s3.locator import ObjectName
from modelcache.sources.s3.signing import S3Signer
from modelcache.transport import RangeClient, Response
from modelcache.transport.head import MAX_SIZE_BYTES
from modelcache.uri import StorageUri

MAX_PAGES = 2 * MAX_OBJECTS // 1000
"""S3 gives 1,000 keys a page; half of them may be folders or unselected."""
HEAD_THREADS = 16
CHECKSUMS_ASKED = {"x-amz-checksum-mode": "ENABLED"}


@dataclass(frozen=True, slots=True)
class FoundObject:
    """An object, where it goes in the snapshot, and what is known of it."""

    path: str
    name: ObjectName
    head: ObjectHead


@dataclass(frozen=True, slots=True)
class Found:
    """What a URI stands for. `version_id`: of its only object, if that was named by the URI and has one."""

    files: tuple[RemoteFile, ...]
    version_id: str | None


class Lister:
    """One listing of one URI."""

    def __init__(
        self, control: ControlPlane, transport: RangeClient, uri: StorageUri, cancel: Cancellation, *, believe: bool = True
    ) -> None:
        """`believe`: False: every object is asked for by HeadObject, whatever the listing says of it.

        `agreed` is then whether all of them had the ETags that were listed.
        """
        self._control = control
        self._signer = S3Signer(control)
        self._transport = transport
        self._uri = uri
        self._cancel = cancel
        self._believe = believe
        self.agreed = False
        self._bucket = uri.authority

    def found(self) -> Found:
        """The selected objects, as the listing or HeadObject saw them (`_described`).

        An object whose key is the URI's path is the only file; else the files are everything below that path.

        Raises: what `Source.list` promises; SourceChanged: an object went away between the listing and its HeadObject.
        """
        doubt: ModelCacheError | None = None
        if self._uri.path:
            try:
                exact = self._exact()
                if exact is not None:
                    [single] = self._with_versions([exact])
                    return Found(_as_files([single]), single.name.version_id)
            except (AccessDenied, ProtocolViolation) as error:
                # To a credential that may not list, S3 denies keys that don't exist; and an answer to HEAD has no body
                # to say more. Listing tells.
                doubt = error
        selected = list(selected_below(self._uri, self._listed(), doubt).items())
        return Found(_as_files(self._with_versions(self._described(selected))), None)

    # -- one object -------------------------------------------------------------------------------------------------

    def _exact(self) -> FoundObject | None:
        """The object whose key is the URI's path; None: there is none, or it only stands for a folder."""
        name = ObjectName(self._bucket, self._uri.path, self._uri.revision)
        version = {} if name.version_id is None else {"VersionId": name.version_id}
        try:
            answer = self._call("head_object", name.address, Key=name.key, ChecksumMode="ENABLED", **version)
        except NotFound:
            if name.version_id is not None:
                raise
            return None
        headers = {key.lower(): value for key, value in answer["ResponseMetadata"]["HTTPHeaders"].items()}
        head = object_head(headers, name)
        if head.directory_marker:
            return None
        path = name.key.rpartition("/")[2]
        check_tree([path], address=name.address)
        if not self._uri.selects(path):
            raise none_selected(self._uri)
        return FoundObject(path, name, head)

    # -- a prefix ---------------------------------------------------------------------------------------------------

    def _listed(self) -> Iterator[Listed[ListedObject]]:
        """Every object under the prefix, page by page."""
        page: dict[str, Any] = {}
        for _ in range(MAX_PAGES):
            token = {"ContinuationToken": page["NextContinuationToken"]} if page else {}
            page = self._call("list_objects_v2", str(self._uri), Prefix=prefix_of(self._uri), **token)
            for each in page.get("Contents", ()):
                listed = _listed_object(self._bucket, each, str(self._uri))
                yield Listed(listed.name.key, listed.size_bytes == 0 and listed.name.key.endswith("/"), listed)
            if not page.get("IsTruncated"):
                return
            if page.get("NextContinuationToken", "") in ("", token.get("ContinuationToken")):
                raise ProtocolViolation("the store's listing does not go on", address=str(self._uri))
        raise InvalidUri(f"over {MAX_PAGES * 1000:,} objects are under one URI", address=str(self._uri), hint="name a folder further down")

    def _described(self, selected: Sequence[tuple[str, ListedObject]]) -> Sequence[FoundObject]:
        """Ask for those of which the listing does not say enough; for all, where versions have names of their own.

        The newest object tells whether the bucket keeps versions: what is older may be from before it did.
        """
        newest = max(range(len(selected)), key=lambda number: selected[number][1].modified_at_s)
        first = self._object(selected[newest])
        believe = self._believe and not first.head.versioned
        asked = [number for number, (_, listed) in enumerate(selected) if number != newest and not (believe and listed.says_enough)]
        found = [FoundObject(path, listed.name, listed.head) for path, listed in selected]
        found[newest] = first
        with ThreadPoolExecutor(HEAD_THREADS, thread_name_prefix="s3-head") as threads:
            try:
                for number, one in zip(asked, threads.map(self._object, [selected[number] for number in asked]), strict=True):
                    found[number] = one
            except BaseException:
                threads.shutdown(wait=True, cancel_futures=True)
                raise
        self.agreed = not self._believe and all(
            each.head.etag == listed.head.etag for each, (_, listed) in zip(found, selected, strict=True)
        )
        return found

    def _object(self, selected: tuple[str, ListedObject]) -> FoundObject:
        path, listed = selected
        answer = self._ask_head(listed.name)
        if answer.status != 200:
            raise answer.error(listed=True)
        return FoundObject(path, listed.name, object_head(answer.headers, listed.name))

    # -- versions ---------------------------------------------------------------------------------------------------

    def _with_versions(self, found: Sequence[FoundObject]) -> Sequence[FoundObject]:
        """Name the objects' versions, where they have some and this credential may read by version.

        Reading by version id is a right of its own (s3:GetObjectVersion) that many readers don't have: one is tried. Without it
        the ETag alone guards against a replaced object.
        """
        if self._uri.revision is not None:
            return found
        named = [replace(each, name=replace(each.name, version_id=each.head.version_id)) for each in found]
        first = next((each.name for each in named if each.name.version_id is not None), None)
        return named if first is not None and self._may_read(first) else found

    def _may_read(self, name: ObjectName) -> bool:
        try:
            return self._ask_head(name).status == 200
        except AccessDenied:
            return False

    # -- asking -----------------------------------------------------------------------------------------------------

    def _ask_head(self, name: ObjectName) -> Response:
        """HeadObject without the SDK, for a fraction of its cost. Raises Unavailable, AccessDenied; other answers are returned."""

        def ask() -> Response:
            signed = self._signer.sign("HEAD", name.locator, CHECKSUMS_ASKED)
            answer = self._transport.request("HEAD", signed.url, signed.headers, self._cancel, 0, follow=False)
            if answer.status in (401, 403, 429) or answer.status >= 500:
                raise answer.error(listed=True)
            return answer

        return attempted(ask, self._control.renew, self._cancel)

    def _call(self, operation: str, address: str, **parameters: object) -> dict[str, Any]:
        def call() -> dict[str, Any]:
            return self._control.call(operation, self._cancel, bucket=self._bucket, address=address, **parameters)

        return attempted(call, self._control.renew, self._cancel)


def _listed_object(bucket: str, entry: Mapping[str, Any], address: str) -> ListedObject:
    """Raises ProtocolViolation: what the listing says is no object. (The SDK passes on whatever can be read as a number and a time.)"""
    try:
        key, size_bytes = entry["Key"], int(entry["Size"])
        modified_at_s = entry["LastModified"].timestamp() if "LastModified" in entry else 0.0
    except (KeyError, ValueError, OverflowError) as error:
        raise ProtocolViolation(f"the store lists an object that can't be read ({error})", address=address) from None
    if not 0 <= size_bytes <= MAX_SIZE_BYTES:
        raise ProtocolViolation(
            "the store lists an object of a size that no file has", address=address, got=f"{str(size_bytes)[:40]} bytes"
        )
    etag = entry.get("ETag", "")
    return ListedObject(
        ObjectName(bucket, key),
        size_bytes,
        etag if len(etag) <= MAX_NAME_CHARACTERS else "",
        entry.get("StorageClass", "")[:MAX_NAME_CHARACTERS],
        KNOWN_ALGORITHMS.intersection(entry.get("ChecksumAlgorithm", ())),
        modified_at_s,
    )


def _as_files(found: Sequence[FoundObject]) -> tuple[RemoteFile, ...]:
    files = (RemoteFile(each.path, each.head.size_bytes, each.name.locator, each.head.etag, each.head.digests) for each in found)
    return tuple(sorted(files, key=lambda file: file.path))
