"""Who may see what of a store that several callers share: proof by reading, remembered as grants (`docs/semantics.md`, Permission)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Protocol

from modelcache.abc.grants import Grant, Grants, Holder, Isolation, Trust
from modelcache.abc.snapshot import Ref, RefKey
from modelcache.abc.source import Listing, RemoteFile, Source
from modelcache.abc.store import Store
from modelcache.config import Config
from modelcache.digest import Algorithm, Digest
from modelcache.errors import AccessDenied, AccessUnproved, BadConfig, Cancelled
from modelcache.manifest import Manifest
from modelcache.mirrors import Mirror
from modelcache.paths import checked_compartment
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.any_fsspec import CallersKeys, FsspecOptions
from modelcache.sources.witnessed import WitnessedSource
from modelcache.transport import Proxies
from modelcache.uri import StorageUri, UriSecrets

CALLERS_SCHEMES = ("s3", "gs", "hf", "https", "http", "az", "abfs", "abfss", "hdfs", "webhdfs")
"""Those whose sources use what `Caller.own_config` holds and nothing else: not the files, nor the cloud identity, of this
machine. (Of Google's credentials a caller's may be those that name nothing to read: `modelcache.sources.gcs.options.TAKEN`.)"""


@dataclass(frozen=True)
class Caller:
    """Somebody whose rights in the store are only those that their own credential proves.

    Attributes:
        credential: what tells this credential from every other one, and changes when it does (an access key and its secret, a
            token). Only its HMAC is kept.
        config: the settings of this caller's own sources: endpoint, CA, keys. What is not in it is not taken from this process: a
            caller without a key is anonymous. Proxies and mirrors are the node's, whatever is in it.
    """

    namespace: str
    service_account: str
    credential: bytes = field(repr=False)
    config: Config = field(repr=False)

    @property
    def own_config(self) -> Config:
        """`config`, without what a source would find of this process's identity, and without ways of the caller's choice."""
        s3, gs, hf = self.config.s3, self.config.gs, self.config.hf
        return replace(
            self.config,
            s3=replace(s3, profile=None, chain_key=None, anonymous=s3.access_key is None),
            gs=replace(gs, credentials_file=None, anonymous=gs.access_token is None and gs.credentials_json is None),
            hf=replace(hf, token_file=None, anonymous=hf.token is None),
            fsspec=FsspecOptions(callers=self.config.fsspec.callers or CallersKeys()),
            mirrors=(),
            proxies=Proxies(),
        )


class Denials:
    """How often callers were refused, by code. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def count(self, error: AccessDenied) -> None:
        with self._lock:
            self._counts[str(error.code)] += 1

    @property
    def by_code(self) -> Mapping[str, int]:
        """A copy."""
        with self._lock:
            return dict(self._counts)


class Admission(Protocol):
    """Who asks for a ref, and what they may have of it. For one ensure; safe for many threads."""

    @property
    def source(self) -> Source:
        """The asker's own."""
        ...

    @property
    def key(self) -> RefKey: ...

    @property
    def identity(self) -> str:
        """Askers of equal identity may share what an ensure came to."""
        ...

    def of(self, uri: StorageUri) -> Admission:
        """The same asker's, with the same source, to another place of it."""
        ...

    def sees(self, revision: str, manifest: Digest) -> bool:
        """Whether this version may be handed out without asking the origin."""
        ...

    def last(self) -> Sequence[Digest]:
        """Manifests that may be handed out when the origin can't be asked, the best first.

        Raises:
            AccessUnproved: none may, whether something is here or not.
        """
        ...

    def known(self, listing: Listing, ref: Ref | None) -> dict[str, Digest]:
        """sha256 by path of the files whose blobs may be linked without fetching them (once `prove` has succeeded)."""
        ...

    def prove(self, files: Iterable[RemoteFile], cancel: Cancellation) -> None:
        """Have read a byte of each of these objects.

        Raises:
            What `Source.open` and `Body.readinto` raise.
        """
        ...

    def proved(self, revision: str, manifest: Manifest) -> None:
        """Every object of this version was proved: remember it."""
        ...

    def refused(self) -> None:
        """The origin refused the credential: what was remembered of it ends."""
        ...


class OwnersAdmission:
    """That of the store's only owner: everything."""

    identity = ""

    def __init__(self, store: Store, source: Source, uri: StorageUri) -> None:
        self.source = source
        self.key = RefKey(str(uri), str(source.origin))
        self._store = store

    def of(self, uri: StorageUri) -> Admission:
        return OwnersAdmission(self._store, self.source, uri)

    def sees(self, revision: str, manifest: Digest) -> bool:
        return True

    def last(self) -> Sequence[Digest]:
        ref = self._store.ref(self.key)
        return [] if ref is None else [ref.manifest]

    def known(self, listing: Listing, ref: Ref | None) -> dict[str, Digest]:
        return fetched_before(listing, ref, claimed=True) | claims(listing)

    def prove(self, files: Iterable[RemoteFile], cancel: Cancellation) -> None:
        pass

    def proved(self, revision: str, manifest: Manifest) -> None:
        pass

    def refused(self) -> None:
        pass


class CallersAdmission:
    """That of one caller: what it has proved, or proves now."""

    def __init__(self, grants: Grants, trust: Trust, holder: Holder, source: WitnessedSource, uri: StorageUri, *, again: bool) -> None:
        """`again`: a proof of before doesn't do."""
        self.source = source
        compartment = holder.namespace if trust.isolation is Isolation.NAMESPACE else ""
        self.key = RefKey(str(uri), str(source.origin), compartment)
        self.identity = "\0".join((holder.namespace, holder.service_account, holder.credential, str(again)))
        self._grants = grants
        self._trust = trust
        self._holder = holder
        self._again = again

    def of(self, uri: StorageUri) -> Admission:
        return CallersAdmission(self._grants, self._trust, self._holder, self.source, uri, again=self._again)

    def sees(self, revision: str, manifest: Digest) -> bool:
        return not self._again and any((grant.revision, grant.manifest) == (revision, manifest) for grant in self._held())

    def last(self) -> Sequence[Digest]:
        held = self._held()
        if not held:
            raise AccessUnproved(f"the right to `{self.key.uri}` is not proved, and its origin is not to be asked", address=self.key.uri)
        return [grant.manifest for grant in held]

    def known(self, listing: Listing, ref: Ref | None) -> dict[str, Digest]:
        """What was fetched of this very version at this very origin; what the origin claims, if it is trusted or it is nothing new
        to the namespace."""
        claimed = claims(listing)
        known = {
            path: digest for path, digest in fetched_before(listing, ref, claimed=False).items() if claimed.get(path, digest) == digest
        }
        unknown = {path: digest for path, digest in claimed.items() if path not in known}
        if not unknown:
            return known
        if listing.expected or str(listing.origin) not in self._trust.origins:
            granted = {digest for grant in self._grants.of_namespace(self._holder.namespace) for digest in grant.blobs}
            unknown = {path: digest for path, digest in unknown.items() if digest in granted}
        return known | unknown

    def prove(self, files: Iterable[RemoteFile], cancel: Cancellation) -> None:
        """One byte of each, several at a time; what this ensure has read already is proved. An empty file has no byte to read,
        and none to protect."""
        todo = {(item.locator, item.validator): item for item in files if item.size_bytes and not self.source.has_read(item)}
        if todo:
            read_each(self.source, list(todo.values()), min(self._trust.proof_requests, len(todo)), cancel)

    def proved(self, revision: str, manifest: Manifest) -> None:
        now_s = self._grants.now_s()
        blobs = tuple(sorted({item.sha256 for item in manifest.files if item.size_bytes}))
        self._grants.put(Grant(self._holder, self.key, revision, manifest.digest, blobs, now_s, now_s + self._trust.grant_ttl_s))

    def refused(self) -> None:
        self._grants.revoke(self._holder, self.key)

    def _held(self) -> list[Grant]:
        return [grant for grant in self._grants.of_holder(self._holder, self.key.uri) if grant.key == self.key]


class Permission:
    """Admits callers to one store.

    Attributes:
        denials: counted where callers are turned away.
    """

    def __init__(self, grants: Grants, config: Config) -> None:
        """`config`: of the store; its proxies and mirrors are its callers', too."""
        self._grants = grants
        self._trust = config.trust
        self._proxies = replace(config.proxies, refused_networks=config.trust.refused_networks)
        self._mirrors = config.mirrors
        self.denials = Denials()

    def granted(self, namespace: str, key: RefKey, manifest: Digest) -> bool:
        """Whether somebody of this namespace has a grant in force on this version of a ref."""
        return any((grant.key, grant.manifest) == (key, manifest) for grant in self._grants.of_namespace(namespace))

    def config_of(self, caller: Caller) -> Config:
        """The settings of a caller's sources: the caller's own, the node's ways to them, and where none of them may lead.

        Raises:
            AccessDenied: a source made of them would look for a credential of this process (`expect_own`).
        """
        own = caller.own_config
        config = replace(own, proxies=self._proxies, mirrors=tuple(_without_identity(mirror, own) for mirror in self._mirrors))
        expect_own(config)
        return config

    def admit(self, caller: Caller, asked: tuple[StorageUri, UriSecrets], source: Source, *, again: bool) -> CallersAdmission:
        """What a caller may have of a URI.

        Args:
            source: made of `config_of(caller)` and nothing else.
            again: proofs of before don't count.

        Raises:
            BadConfig: the store keeps namespaces apart, and this is no name of one.
        """
        uri, secrets = asked
        if self._trust.isolation is Isolation.NAMESPACE:
            _expect_namespace(caller.namespace)
        witnessed = WitnessedSource(source, source.origin)
        return CallersAdmission(self._grants, self._trust, self._holder(caller, secrets), witnessed, uri, again=again)

    def _holder(self, caller: Caller, secrets: UriSecrets) -> Holder:
        parts = (caller.credential, (secrets.userinfo or "").encode(), secrets.query.encode())
        credential = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return Holder(caller.namespace, caller.service_account, self._grants.mac(credential))


def _expect_namespace(name: str) -> None:
    try:
        checked_compartment(name)
    except ValueError as error:
        hint = "a namespace that has a part of the store for itself is named by a DNS label, as in Kubernetes"
        raise BadConfig(str(error), got=ascii(name[:80]), hint=hint) from None


def expect_own(config: Config) -> None:
    """Raises AccessDenied: a source of these settings is neither anonymous nor has a key, so that it would use this process's."""
    s3, gs, hf = config.s3, config.gs, config.hf
    kept = {
        "s3": s3.profile is None and s3.chain_key is None and (s3.anonymous or s3.access_key is not None),
        "gs": gs.credentials_file is None and (gs.anonymous or gs.access_token is not None or gs.credentials_json is not None),
        "hf": hf.token_file is None and (hf.anonymous or hf.token is not None),
        "az": config.fsspec.callers is not None,
    }
    if not all(kept.values()):
        found = ", ".join(f"`{scheme}://`" for scheme, own in kept.items() if not own)
        raise AccessDenied(f"a caller's {found} would be read with the identity of this machine")


def _without_identity(mirror: Mirror, own: Config) -> Mirror:
    """A mirror of the node's for a caller: asked with the caller's key, if it has one, and with no other."""
    keys = {"s3": own.s3.access_key, "gs": own.gs.access_token or own.gs.credentials_json, "hf": own.hf.token}
    keyless = mirror.scheme in keys and keys[mirror.scheme] is None
    return replace(mirror, profile=None, credentials_file=None, anonymous=True if keyless else mirror.anonymous)


def expect_served(uri: StorageUri) -> None:
    """Raises AccessDenied: this scheme's bytes are read with the identity of this process, which proves nothing of a caller."""
    if uri.scheme not in CALLERS_SCHEMES:
        raise AccessDenied(
            f"no caller of a shared store can prove a right to `{uri.scheme}://` URIs",
            address=str(uri),
            hint=f"a caller's own credential reads {', '.join(f'`{scheme}://`' for scheme in CALLERS_SCHEMES)}",
        )


def claims(listing: Listing) -> dict[str, Digest]:
    """sha256 by path as the origin, or the URI, states it."""
    return {item.path: digest for item in listing.files for digest in item.digests if digest.algorithm is Algorithm.SHA256}


def fetched_before(listing: Listing, ref: Ref | None, *, claimed: bool) -> dict[str, Digest]:
    """sha256 by path, of files whose very version the ref names. `claimed`: also where that is an origin's word alone."""
    before = {} if ref is None else {item.path: item for item in ref.files if claimed or not item.claimed}
    known = {}
    for item in listing.files:
        same = before.get(item.path)
        if same is not None and item.validator and (same.validator, same.size_bytes) == (item.validator, item.size_bytes):
            known[item.path] = same.sha256
    return known


def read_each(source: Source, files: Sequence[RemoteFile], requests: int, cancel: Cancellation) -> None:
    """Read a byte of each; the first failure ends the others."""
    stop = Cancellation()
    with cancel.on_cancel(stop.cancel), ThreadPoolExecutor(requests, thread_name_prefix="proof") as threads:
        reads = [threads.submit(_read_one, source, file, stop) for file in files]
        try:
            wait(reads, return_when=FIRST_EXCEPTION)
        finally:
            stop.cancel()
    cancel.check()
    _raise_first(reads)


def _raise_first(reads: Iterable[Future[None]]) -> None:
    errors = [error for read in reads if (error := read.exception()) is not None]
    for error in errors:
        if not isinstance(error, Cancelled):
            raise error
    if errors:
        raise errors[0]


def _read_one(source: Source, file: RemoteFile, cancel: Cancellation) -> None:
    """One byte, through the way that downloads take."""
    cancel.check()
    span = ByteRange(0, 1 if file.resumable else file.size_bytes)
    byte = memoryview(bytearray(1))
    with closing(source.open(file, span, cancel)) as body, cancel.on_cancel(body.abort):
        body.readinto(byte)
        if file.resumable:
            body.readinto(byte)  # its end: what came was this range and no more, and the connection can serve again
