"""The S3 source: a listing through the SDK, bytes through the transport."""

from __future__ import annotations

from functools import cached_property

from modelcache.abc.source import Body, Listing, Origin, RemoteFile, fingerprint
from modelcache.errors import InvalidUri, SourceChanged
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.s3.listing import Lister
from modelcache.sources.s3.locator import NULL_VERSION
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
    """

    def __init__(self, options: S3Options, timeouts: Timeouts | None = None, *, proxies: Proxies | None = None) -> None:
        self._options = options
        timeouts = timeouts or Timeouts()
        self._transport = RangeClient(timeouts, ca_file=options.ca_file, verify=options.verify_tls, proxies=proxies)
        self._sdk = Sdk(options, self._transport, timeouts)
        self._signer = S3Signer(self._sdk)

    @cached_property
    def origin(self) -> Origin:
        """The endpoint with its path, before a bucket is put into it; where none is set, the SDK is asked for the region's.

        Raises: BadConfig: settings that can't be used, or a CA file that can't be read.
        """
        endpoint = self._options.endpoint or self._sdk.endpoint
        target = Target.parse(endpoint)
        if not self._options.verify_tls and target.scheme == "https":
            return Origin(target.base, verified=False)
        return Origin(target.base, ca_sha256(self._options.ca_file))

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
        version = {"If-Match": file.validator} if file.validator else {}
        echo = {"ETag": file.validator} if file.validator else {}
        return self._transport.open_range(self._signer, file, span, Precondition(version, echo), cancel)

    def close(self) -> None:
        self._transport.close()
        self._sdk.close()

    def _listing(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        found = Lister(self._sdk, self._transport, uri, cancel).found()
        return Listing(
            uri=uri,
            origin=self.origin,
            revision=found.version_id or fingerprint(found.files),
            immutable=uri.revision is not None and uri.revision != NULL_VERSION,
            files=found.files,
        )
