"""The GCS source: a listing by the JSON API, bytes by its media requests."""

from __future__ import annotations

from modelcache.abc.source import Body, Listing, Origin, RemoteFile, fingerprint
from modelcache.errors import AccessDenied
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.gcs.listing import Lister
from modelcache.sources.gcs.locator import ObjectName
from modelcache.sources.gcs.options import GcsOptions
from modelcache.sources.gcs.refusals import denied
from modelcache.sources.gcs.signing import GcsSigner
from modelcache.sources.gcs.tokens import Tokens
from modelcache.transport import Precondition, Proxies, RangeClient, Target, Timeouts, ca_sha256
from modelcache.uri import StorageUri


class GcsSource:
    """One GCS endpoint, with one credential (`modelcache.abc.source.Source`).

    The version of an object is its generation: every range asks for it by number, with `ifGenerationMatch`, and has to state it
    (`x-goog-generation`). Where the bucket keeps old generations, an object that is overwritten can still be fetched to its end.
    """

    def __init__(self, options: GcsOptions, timeouts: Timeouts | None = None, *, proxies: Proxies | None = None) -> None:
        timeouts, proxies = timeouts or Timeouts(), proxies or Proxies()
        self._options = options
        self._transport = RangeClient(timeouts, ca_file=options.ca_file, proxies=proxies)
        self._tokens = Tokens(options, timeouts, proxies)
        self._signer = GcsSigner(options.base_url, self._tokens)

    @property
    def origin(self) -> Origin:
        """The endpoint with its path. Raises BadConfig: a CA file that can't be read."""
        target, ca = Target.parse(self._options.base_url), ca_sha256(self._options.ca_file)
        return Origin(target.base, ca if target.scheme == "https" else None)

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        """As `Source.list`."""
        files = Lister(self._options.base_url, self._tokens, self._transport, uri, cancel).files()
        single = len(files) == 1 and ObjectName.of_locator(files[0].locator).name == uri.path
        revision = files[0].validator if single else fingerprint(files)
        return Listing(uri, self.origin, revision, immutable=uri.revision is not None, files=files)

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """As `Source.open`."""
        try:
            return self._transport.open_range(self._signer, file, span, Precondition({}, {"X-Goog-Generation": file.validator}), cancel)
        except AccessDenied as error:
            address, message = ObjectName.of_locator(file.locator).address, error.message
        raise denied(message, address, credential_found=self._tokens.found)

    def close(self) -> None:
        """As `Source.close`."""
        self._transport.close()
        self._tokens.close()
