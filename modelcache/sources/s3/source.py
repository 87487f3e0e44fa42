"""The S3 source: a listing through the SDK, bytes through the transport."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from modelcache.abc.source import Body, Listing, Origin, RemoteFile, fingerprint
from modelcache.chunks import CHUNK_BYTES
from modelcache.errors import InvalidUri, ProtocolViolation, SourceChanged
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.s3.control import ControlPlane
from modelcache.sources.s3.fixed import FixedEndpoint
from modelcache.sources.s3.heads import stated_digests
from modelcache.sources.s3.listing import CHECKSUMS_ASKED, Lister
from modelcache.sources.s3.locator import NULL_VERSION, ObjectName
from modelcache.sources.s3.options import S3Options
from modelcache.sources.s3.sdk import Sdk
from modelcache.sources.s3.signing import S3Signer
from modelcache.transport import Precondition, Proxies, RangeClient, Target, Timeouts, ca_sha256
from modelcache.uri import StorageUri

LISTINGS = 3
"""Tries of a whole listing while objects vanish under it."""
DIRECTORY_BUCKET_SUFFIX = "--x-s3"


class S3Source:
    """One S3 endpoint, with one credential (`modelcache.abc.source.Source`).

    The version of an object is its ETag, sent as If-Match with every range; where the bucket keeps versions and the credential may
    read them, ranges also name the version id, so that an object that was overwritten can still be fetched to its end.
    Once a listed version turned out not to be there, listings of its bucket believe HeadObject alone, until one agrees with it: some
    store's listing may name other ETags than its answers do, or lag behind.
    """

    def __init__(self, options: S3Options, timeouts: Timeouts | None = None, *, proxies: Proxies | None = None) -> None:
        self._options = options
        timeouts = timeouts or Timeouts()
        self._transport = RangeClient(timeouts, ca_file=options.ca_file, verify=options.verify_tls, proxies=proxies)
        self._control: ControlPlane = (
            FixedEndpoint(options, self._transport) if options.complete else Sdk(options, self._transport, timeouts)
        )
        self._signer = S3Signer(self._control)
        self._doubted: set[str] = set()

    @cached_property
    def origin(self) -> Origin:
        """The endpoint with its path, before a bucket is put into it; where none is set, the SDK is asked for the region's.

        Raises: BadConfig: settings that can't be used, or a CA file that can't be read.
        """
        endpoint = self._options.endpoint or self._control.endpoint
        target = Target.parse(endpoint)
        if not self._options.verify_tls and target.scheme == "https":
            return Origin(target.base, verified=False)
        ca = ca_sha256(self._options.ca_file)
        return Origin(target.base, ca if target.scheme == "https" else None)

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        if uri.authority.endswith(DIRECTORY_BUCKET_SUFFIX):
            raise InvalidUri(
                "directory buckets (S3 Express One Zone) are not served", address=str(uri), hint="use a general purpose bucket"
            )
        for attempt in range(1, LISTINGS + 1):
            try:
                return self._listing(uri, cancel)
            except SourceChanged:  # an object went away after it was listed: look again
                if attempt == LISTINGS:
                    raise
        raise AssertionError("unreachable")

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """As `Source.open`. A small file is asked for whole: then the answer states the checksums that a HeadObject would."""
        version = {"If-Match": file.validator} if file.validator else {}
        echo = {"ETag": file.validator} if file.validator else {}
        whole = span.size_bytes == file.size_bytes and _asked_whole(file)
        try:
            if not whole:
                return self._transport.open_range(self._signer, file, span, Precondition(version, echo), cancel)
            asked = Precondition(version | CHECKSUMS_ASKED, echo)
            body = self._transport.open_range(self._signer, replace(file, ranged=False), span, asked, cancel)
        except SourceChanged:
            self._doubted.add(ObjectName.of_locator(file.locator).bucket)
            raise
        try:
            body.stated = stated_digests(body.headers, ObjectName.of_locator(file.locator))
        except ProtocolViolation:
            body.close()
            raise
        return body

    def close(self) -> None:
        self._transport.close()
        self._control.close()

    def _listing(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        lister = Lister(self._control, self._transport, uri, cancel, believe=uri.authority not in self._doubted)
        found = lister.found()
        if lister.agreed:
            self._doubted.discard(uri.authority)
        return Listing(
            uri=uri,
            origin=self.origin,
            revision=found.version_id or fingerprint(found.files),
            immutable=uri.revision is not None and uri.revision != NULL_VERSION,
            files=tuple(replace(file, stated_later=_asked_whole(file) and not file.digests) for file in found.files),
        )


def _asked_whole(file: RemoteFile) -> bool:
    """Whether one request brings all of it, so that the answer states the checksums of all its bytes."""
    return file.size_bytes <= CHUNK_BYTES
