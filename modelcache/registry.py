"""Which source serves which URI: schemes to sources, made when first needed and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import unquote

from modelcache.abc.snapshot import Ref
from modelcache.abc.source import Origin, Source
from modelcache.config import Config
from modelcache.errors import AccessDenied, BadConfig, InvalidUri, ModelCacheError, UnknownScheme
from modelcache.mirrors import Mirror, Mirrors
from modelcache.sources.any_fsspec import FsspecSource
from modelcache.sources.any_fsspec.callers import as_blobs
from modelcache.sources.claims import ClaimSource
from modelcache.sources.gcs import GcsOptions, GcsSource
from modelcache.sources.http import HttpSource
from modelcache.sources.huggingface import HubOptions, HubSource
from modelcache.sources.local import LocalSource
from modelcache.sources.mirrored import MirroredSource
from modelcache.sources.retrying import RetryingSource
from modelcache.sources.s3 import S3Options, S3Source
from modelcache.sources.throttled import Allowances
from modelcache.uri import StorageUri, UriSecrets
from modelcache.uri_places import KNOWN_SCHEMES

SCHEMES = ("file", "http", "https", "s3", "gs", "hf", "pvc")
NOT_FSSPECS = KNOWN_SCHEMES - {"hdfs", "webhdfs"}
"""Schemes that mean something of their own here: fsspec is not asked for what it might understand by them."""
ONE_FOR_ALL = frozenset({"file", "s3", "gs", "hf"})
"""Schemes of which one source serves every URI; the others' are of one authority."""


class Registry:
    """Sources by scheme and endpoint. Thread-safe."""

    def __init__(
        self,
        config: Config,
        on_throttle: Callable[[Origin], None],
        allowances: Allowances | None = None,
        expect: Callable[[StorageUri], None] = lambda place: None,
        expect_config: Callable[[Config], None] = lambda config: None,
    ) -> None:
        """
        Args:
            allowances: bytes a second that sources of several registries share; None: those of `config`.
            expect: raises AccessDenied for a place at a mirror that is not to be read for who asks here.
            expect_config: raises AccessDenied for settings that no source is to be made of, a mirror's included.
        """
        self._config = config
        self._expect = expect
        self._expect_config = expect_config
        self._on_throttle = on_throttle
        self._allowances = allowances or Allowances(config.rates)
        self._mirrors = Mirrors(config.mirrors)
        self._lock = threading.Lock()
        self._kept: dict[str, Source] = {}

    @contextmanager
    def source(self, uri: StorageUri, secrets: UriSecrets) -> Iterator[Source]:
        """The first of `sources`."""
        with self.sources(uri, secrets) as [first, *_]:
            yield first

    @contextmanager
    def sources(self, uri: StorageUri, secrets: UriSecrets) -> Iterator[Sequence[Source]]:
        """Those that this URI can come from, in turn: a mirror's, and that of the original place if the mirror has a fallback or
        there is none. Secrets of the URI are for the original place alone; a source made with them is not kept.

        Raises:
            UnknownScheme: nothing here serves the scheme.
            NotFound: the mirror can't have this version, and has no fallback.
            AccessDenied: the mirror is not to be read for who asks, and has no fallback.
        """
        found = self._mirrors.find(uri)
        mirrored = [] if found is None else self._mirrored(*found)
        if found is not None and not found[0].fallback:
            yield mirrored
        elif secrets:
            source = self._make(self._config, uri, secrets)
            try:
                yield [*mirrored, source]
            finally:
                source.close()
        else:
            where = uri.scheme if uri.scheme in ONE_FOR_ALL else f"{uri.scheme}://{uri.authority}"
            yield [*mirrored, self._keep(where, lambda: self._make(self._config, uri, secrets))]

    def _mirrored(self, mirror: Mirror, there: StorageUri) -> Sequence[Source]:
        try:
            self._expect(there)
        except AccessDenied:
            if not mirror.fallback:
                raise
            return []
        return [self._mirror(mirror, there)]

    def _mirror(self, mirror: Mirror, there: StorageUri) -> Source:
        def make() -> Source:
            return MirroredSource(self._make(_mirrors_config(self._config, mirror), there, UriSecrets()), self._there)

        return self._keep(f"{mirror.prefix} {there.scheme}://{there.authority}", make)

    def _there(self, uri: StorageUri) -> StorageUri:
        found = self._mirrors.find(uri)
        return uri if found is None else found[1]

    def _keep(self, where: str, make: Callable[[], Source]) -> Source:
        with self._lock:
            if where not in self._kept:
                self._kept[where] = make()
            return self._kept[where]

    def close(self) -> None:
        """Close idle connections of every source."""
        with self._lock:
            kept = list(self._kept.values())
            self._kept.clear()
        for source in kept:
            source.close()

    def _make(self, config: Config, uri: StorageUri, secrets: UriSecrets) -> Source:
        self._expect_config(config)
        return RetryingSource(self._allowances.bound(_bare(config, uri, secrets)), config.retry, on_throttle=self._on_throttle)


def own_refs(refs: Sequence[Ref], config: Config, asked: tuple[StorageUri, UriSecrets]) -> Sequence[Sequence[Ref]]:
    """Those of a URI's refs whose origin it has by these settings, a place at a time, in turn. All of them together: where none is, or all
    have one origin (S3's SDK takes a third of a second to name its endpoint), or the origins can't be told. Nobody is asked. Those of
    compartments count only where there is nothing else."""
    refs = [ref for ref in refs if not ref.key.compartment] or refs
    if len({ref.key.origin for ref in refs}) < 2:
        return [refs]
    own = ([ref for ref in refs if ref.key.origin == origin] for origin in origins_of(config, asked))
    return [found for found in own if found] or [refs]


def origins_of(config: Config, asked: tuple[StorageUri, UriSecrets]) -> Sequence[str]:
    """Those of a URI by these settings, in turn. Empty where they can't be told: a package is missing, or settings can't be used. No
    credential is looked for: none of them depends on one."""
    s3 = replace(config.s3, anonymous=True, access_key=None, secret_key=None, session_token=None)
    registry = Registry(replace(config, s3=s3), on_throttle=lambda origin: None)
    try:
        with registry.sources(*asked) as sources:
            return [*dict.fromkeys(str(source.origin) for source in sources)]
    except ModelCacheError:
        return ()
    finally:
        registry.close()


def _bare(config: Config, uri: StorageUri, secrets: UriSecrets) -> Source:
    if uri.scheme == "file":
        _refuse(uri, secrets.userinfo, secrets.query)
        return LocalSource()
    if uri.scheme == "pvc":
        _refuse(uri, secrets.userinfo, secrets.query)
        return ClaimSource(uri.authority, config.pvc)
    if uri.scheme == "s3":
        return S3Source(_s3_options(config.s3, uri, secrets), config.timeouts, proxies=config.proxies)
    if uri.scheme == "gs":
        return GcsSource(_gcs_options(config.gs, uri, secrets), config.timeouts, proxies=config.proxies)
    if not secrets and (blobs := as_blobs(uri, config.fsspec.callers)) is not None:
        return MirroredSource(_bare(config, blobs, secrets), lambda asked: as_blobs(asked, config.fsspec.callers) or asked)
    if uri.scheme in ("http", "https"):
        return HttpSource(uri, secrets, config.http, config.timeouts, proxies=config.proxies)
    if uri.scheme == "hf":
        return HubSource(_hub_options(config.hf, uri, secrets), config.timeouts, proxies=config.proxies)
    if uri.scheme not in NOT_FSSPECS:
        return FsspecSource(uri, secrets, config.fsspec, config.timeouts, proxies=config.proxies)
    hint = f"known here: {', '.join(SCHEMES)}, and what fsspec has a filesystem for"
    raise UnknownScheme(f"no source serves `{uri.scheme}://`", address=str(uri), got=uri.scheme, hint=hint)


def _mirrors_config(config: Config, mirror: Mirror) -> Config:
    """The settings that a mirror's source is made with: the mirror's own over those of its scheme."""
    given = {name: getattr(mirror, name) for name in ("endpoint", "ca_file", "anonymous") if getattr(mirror, name) is not None}
    if mirror.scheme == "s3":
        given |= {name: getattr(mirror, name) for name in ("region", "profile", "path_style") if getattr(mirror, name) is not None}
        if mirror.ca_file is not None:
            given["verify_tls"] = True  # it was named to be checked against, whatever is said of other endpoints
        if mirror.profile is not None or mirror.anonymous:
            given |= {"access_key": None, "secret_key": None, "session_token": None}
        return replace(config, s3=replace(config.s3, **given))
    if mirror.scheme in ("http", "https"):
        return replace(config, http=replace(config.http, **given))
    if mirror.scheme not in ("gs", "hf"):
        storage = mirror.credentials_file
        return config if storage is None else replace(config, fsspec=config.fsspec.with_file(mirror.scheme, storage))
    nobody = dict.fromkeys(("credentials_file", "credentials_json", "access_token") if mirror.scheme == "gs" else ("token_file", "token"))
    if mirror.credentials_file is not None:
        file = "credentials_file" if mirror.scheme == "gs" else "token_file"
        given |= nobody | {file: mirror.credentials_file, "anonymous": False}
    elif mirror.endpoint is not None and mirror.anonymous is None:
        given["anonymous"] = True  # a token goes to who it was given for, and to others on somebody's word alone
    if given.get("anonymous"):
        given |= nobody
    return replace(config, gs=replace(config.gs, **given)) if mirror.scheme == "gs" else replace(config, hf=replace(config.hf, **given))


def _s3_options(options: S3Options, uri: StorageUri, secrets: UriSecrets) -> S3Options:
    """The configured settings, with the key of `s3://ACCESS_KEY:SECRET_KEY@bucket` in place of the SDK's chain."""
    _refuse(uri, None, secrets.query)
    if secrets.userinfo is None:
        return options
    access_key, _, secret_key = secrets.userinfo.partition(":")
    if not access_key or not secret_key:
        raise InvalidUri(f"the credential in `{uri}` is not ACCESS_KEY:SECRET_KEY", address=str(uri))
    return replace(
        options, anonymous=False, access_key=unquote(access_key), secret_key=unquote(secret_key), session_token=None, profile=None
    )


def _gcs_options(options: GcsOptions, uri: StorageUri, secrets: UriSecrets) -> GcsOptions:
    """The configured settings, with the token of `gs://ACCESS_TOKEN@bucket` in place of the SDK's chain."""
    _refuse(uri, None, secrets.query)
    if secrets.userinfo is None:
        return options
    if not secrets.userinfo or ":" in secrets.userinfo:
        raise InvalidUri(f"the credential in `{uri}` is not an access token", address=str(uri))
    return replace(options, anonymous=False, access_token=unquote(secrets.userinfo), credentials_file=None, credentials_json=None)


def _hub_options(options: HubOptions, uri: StorageUri, secrets: UriSecrets) -> HubOptions:
    """The configured settings, with the token of `hf://[USER:]TOKEN@owner/model` (as in the Hub's git URLs) in place of theirs."""
    _refuse(uri, None, secrets.query)
    if secrets.userinfo is None:
        return options
    try:
        return replace(options, anonymous=False, token=unquote(secrets.userinfo.rpartition(":")[2]), token_file=None)
    except BadConfig:
        raise InvalidUri(f"the credential in `{uri}` is not a token", address=str(uri)) from None


def _refuse(uri: StorageUri, userinfo: str | None, query: str) -> None:
    """Raises InvalidUri: a credential was given that this scheme has no use for."""
    if userinfo is not None or query:
        part = "a user or password" if userinfo is not None else "signing parameters"
        raise InvalidUri(
            f"`{uri.scheme}://` URIs take no {part}", address=str(uri), hint="a presigned URL is written as it is, with `https://`"
        )
