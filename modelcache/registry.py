"""Which source serves which URI: schemes to sources, made when first needed and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import unquote

from modelcache.abc.source import Origin, Source
from modelcache.config import Config
from modelcache.errors import BadConfig, InvalidUri, UnknownScheme
from modelcache.sources.any_fsspec import FsspecSource
from modelcache.sources.gcs import GcsOptions, GcsSource
from modelcache.sources.http import HttpSource
from modelcache.sources.huggingface import HubOptions, HubSource
from modelcache.sources.local import LocalSource
from modelcache.sources.retrying import RetryingSource
from modelcache.sources.s3 import S3Options, S3Source
from modelcache.sources.throttled import Allowances
from modelcache.uri import StorageUri, UriSecrets
from modelcache.uri_places import KNOWN_SCHEMES

SCHEMES = ("file", "http", "https", "s3", "gs", "hf")
NOT_FSSPECS = KNOWN_SCHEMES - {"hdfs", "webhdfs"}
"""Schemes that mean something of their own here: fsspec is not asked for what it might understand by them."""
ONE_FOR_ALL = frozenset({"file", "s3", "gs", "hf"})
"""Schemes of which one source serves every URI; the others' are of one authority."""


class Registry:
    """Sources by scheme and endpoint. Thread-safe."""

    def __init__(self, config: Config, on_throttle: Callable[[Origin], None], allowances: Allowances | None = None) -> None:
        """`allowances`: bytes a second that sources of several registries share; None: those of `config`."""
        self._config = config
        self._on_throttle = on_throttle
        self._allowances = allowances or Allowances(config.rates)
        self._lock = threading.Lock()
        self._kept: dict[str, Source] = {}

    @contextmanager
    def source(self, uri: StorageUri, secrets: UriSecrets) -> Iterator[Source]:
        """The source of this URI. One made for secrets of a single URI is not kept.

        Raises:
            UnknownScheme: nothing here serves the scheme.
        """
        if secrets:
            source = self._make(uri, secrets)
            try:
                yield source
            finally:
                source.close()
            return
        where = uri.scheme if uri.scheme in ONE_FOR_ALL else f"{uri.scheme}://{uri.authority}"
        with self._lock:
            if where not in self._kept:
                self._kept[where] = self._make(uri, secrets)
            kept = self._kept[where]
        yield kept

    def close(self) -> None:
        """Close idle connections of every source."""
        with self._lock:
            kept = list(self._kept.values())
            self._kept.clear()
        for source in kept:
            source.close()

    def _make(self, uri: StorageUri, secrets: UriSecrets) -> Source:
        source = self._allowances.bound(self._bare(uri, secrets))
        return RetryingSource(source, self._config.retry, on_throttle=self._on_throttle)

    def _bare(self, uri: StorageUri, secrets: UriSecrets) -> Source:
        config = self._config
        if uri.scheme == "file":
            _refuse(uri, secrets.userinfo, secrets.query)
            return LocalSource()
        if uri.scheme == "s3":
            return S3Source(_s3_options(config.s3, uri, secrets), config.timeouts, proxies=config.proxies)
        if uri.scheme == "gs":
            return GcsSource(_gcs_options(config.gs, uri, secrets), config.timeouts, proxies=config.proxies)
        if uri.scheme in ("http", "https"):
            return HttpSource(uri, secrets, config.http, config.timeouts, proxies=config.proxies)
        if uri.scheme == "hf":
            return HubSource(_hub_options(config.hf, uri, secrets), config.timeouts, proxies=config.proxies)
        if uri.scheme not in NOT_FSSPECS:
            return FsspecSource(uri, secrets, config.fsspec, config.timeouts)
        raise UnknownScheme(
            f"no source serves `{uri.scheme}://`", address=str(uri), got=uri.scheme, hint=f"known here: {', '.join(SCHEMES)}"
        )


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
    return replace(options, anonymous=False, access_token=unquote(secrets.userinfo), credentials_file=None)


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
