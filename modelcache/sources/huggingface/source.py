"""The hub's source: a listing of one commit, and bytes from wherever the hub says they are."""

from __future__ import annotations

from dataclasses import replace

from modelcache.abc.source import Body, Listing, Origin, RemoteFile
from modelcache.digest import Algorithm
from modelcache.errors import AccessDenied, NotFound, OriginBusy, SourceChanged
from modelcache.paths import check_tree
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.huggingface.credential import Credential
from modelcache.sources.huggingface.hub import Hub
from modelcache.sources.huggingface.location import FileLocation, is_commit
from modelcache.sources.huggingface.options import HubOptions
from modelcache.sources.huggingface.places import Places
from modelcache.sources.huggingface.signing import AtHub, AtPlace
from modelcache.sources.huggingface.trees import Trees
from modelcache.transport import Precondition, Proxies, RangeClient, Timeouts, ca_sha256
from modelcache.uri import StorageUri
from modelcache.uri_places import DEFAULT_REVISIONS


class HubSource:
    """One hub, with one credential (`modelcache.abc.source.Source`).

    A URI is resolved to a commit, and files are read from that commit, which never changes: that is their precondition, as the
    hub knows no other. What it states of each is compared: the sha256 of LFS files, git's object id of the others. A listing whose
    commit was listed before costs one request; the bytes of an LFS file cost one to the hub, whatever the number of ranges.
    """

    def __init__(self, options: HubOptions, timeouts: Timeouts | None = None, *, proxies: Proxies | None = None) -> None:
        """Raises: BadConfig: the CA file can't be read."""
        base = options.base
        ca = ca_sha256(options.ca_file) if base.scheme == "https" else None
        self._origin = Origin(f"{base.endpoint}{base.resource.rstrip('/')}", ca)
        self._transport = RangeClient(timeouts or Timeouts(), ca_file=options.ca_file, proxies=proxies)
        self._credential = Credential(options)
        self._hub = Hub(options, self._transport, self._credential)
        self._trees = Trees(self._hub)
        self._places = Places(self._hub)

    @property
    def origin(self) -> Origin:
        """The endpoint, with the path of a mirror that has one."""
        return self._origin

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        """As `Source.list`. What was learnt about where files are is forgotten: each is asked for anew when it is opened next."""
        cancel.check()
        revision = uri.revision or DEFAULT_REVISIONS["hf"]
        commit = self._hub.commit(uri.authority, revision, str(uri), cancel)
        tree = self._trees.of(uri.authority, commit, uri.path, str(uri), cancel)
        self._places.forget_repository(uri.authority)
        self._transport.forget_redirects(f"{uri.authority}/")
        above = uri.path.rpartition("/")[0] if tree.single else uri.path
        start = len(above) + 1 if above else 0
        named = [(file.path[start:], file) for file in tree.files]
        selected = sorted(((name, file) for name, file in named if uri.selects(name)), key=lambda pair: pair[0])
        if not selected:
            raise NotFound("no file that the patterns select" if named else "the repository holds no file", address=str(uri))
        check_tree((name for name, _ in selected), address=str(uri))
        files = tuple(replace(file, path=name) for name, file in selected)
        return Listing(uri, self._origin, commit, immutable=is_commit(revision) and revision == commit, files=files)

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """As `Source.open`."""
        cancel.check()
        if any(digest.algorithm is Algorithm.GIT_SHA1 for digest in file.digests):
            return self._open_in_git(file, span, cancel)
        return self._transport.open_range(AtPlace(file, self._places, self._at_hub(), cancel), file, span, Precondition(), cancel)

    def close(self) -> None:
        """As `Source.close`."""
        self._transport.close()

    def _open_in_git(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """A file that git itself holds: small, so asked for at once. Only where that fails is the hub asked for its reasons."""
        try:
            return self._transport.open_range(self._at_hub(), file, span, Precondition(), cancel)
        except (AccessDenied, SourceChanged, OriginBusy) as error:
            if isinstance(error, OriginBusy) and error.retry_after_s is not None:
                raise
            self._hub.head(FileLocation.of_locator(file.locator), cancel)
            raise

    def _at_hub(self) -> AtHub:
        return AtHub(self._hub.base_url, self._credential)
