"""What a tenant's secret says about the tenant's sources: the names that it may hold, and nothing that leads into this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from modelcache.config import Config
from modelcache.config.aws import DEFAULT_REGION
from modelcache.config.headers import KSERVES_SUFFIX, kserves_headers
from modelcache.config.kinds import Scalar
from modelcache.config.scalars import ENDPOINT, FLAG, HUB_ENDPOINT, HUB_TOKEN
from modelcache.errors import BadConfig
from modelcache.permission import Caller
from modelcache.sources.any_fsspec import AzureKey, CallersKeys, FsspecOptions, HdfsKeys
from modelcache.sources.any_fsspec.azure_key import PUBLIC_AUTHORITY
from modelcache.sources.any_fsspec.callers import nodes_place
from modelcache.sources.any_fsspec.hdfs import CERTIFICATES, KERBEROS, TEXTS
from modelcache.sources.gcs import GcsOptions
from modelcache.sources.http import HttpOptions, expect_settable
from modelcache.sources.huggingface import HubOptions
from modelcache.sources.s3 import S3Options

GOOGLES_KEY = "gcloud-application-credentials.json"
HTTPS_HOST, HTTPS_HEADERS = "https-host", "headers"
"""Of KServe's secrets for web servers (`https_secret.go`); its init container gets them as `HOST-headers`."""

_KEY = re.compile(r"[!-~]+")
_REGION = re.compile(r"[A-Za-z0-9-]{1,63}")
_SECONDS = re.compile(r"[0-9]{1,12}")
HDFS_NAMES = (*TEXTS, *CERTIFICATES, *KERBEROS, "N_THREADS")
"""Of KServe's secrets of HDFS, which are known by `HDFS_NAMENODE`."""


def _matching(pattern: re.Pattern[str], text: str) -> str:
    """Kubernetes secrets that were made from a file end with a line feed."""
    if not pattern.fullmatch(text.strip()):
        raise ValueError(text)
    return text.strip()


_SECRET = Scalar("a text without spaces", lambda text: _matching(_KEY, text), secret=True)
_NAME = Scalar("a name without spaces", lambda text: _matching(_KEY, text))
_HOST_OR_URL = Scalar("a host, or a URL", lambda text: _matching(_KEY, text))

NAMES: Mapping[str, Scalar] = {
    "AWS_ACCESS_KEY_ID": _SECRET,
    "AWS_SECRET_ACCESS_KEY": _SECRET,
    "AWS_SESSION_TOKEN": _SECRET,
    "awsAnonymousCredential": FLAG,
    "AWS_ENDPOINT_URL_S3": ENDPOINT,
    "AWS_ENDPOINT_URL": ENDPOINT,
    "S3_ENDPOINT": _HOST_OR_URL,
    "S3_USE_HTTPS": FLAG,
    "S3_VERIFY_SSL": FLAG,
    "S3_USER_VIRTUAL_BUCKET": FLAG,
    "AWS_REGION": Scalar("a region", lambda text: _matching(_REGION, text)),
    "AWS_DEFAULT_REGION": Scalar("a region", lambda text: _matching(_REGION, text)),
    "HF_TOKEN": HUB_TOKEN,
    "HUGGING_FACE_HUB_TOKEN": HUB_TOKEN,
    "HF_ENDPOINT": HUB_ENDPOINT,
    "CLOUDSDK_AUTH_ACCESS_TOKEN": _SECRET,
    GOOGLES_KEY: Scalar("JSON of a credential", lambda text: text, secret=True),
    "AZURE_STORAGE_ACCOUNT_NAME": _NAME,
    "AZURE_STORAGE_ACCOUNT": _NAME,
    "AZURE_ACCOUNT_NAME": _NAME,
    "AZURE_SERVICE_URL": ENDPOINT,
    "AZURE_STORAGE_ACCOUNT_KEY": _SECRET,
    "AZURE_STORAGE_ACCESS_KEY": _SECRET,
    "AZURE_STORAGE_KEY": _SECRET,
    "AZURE_STORAGE_CONNECTION_STRING": _SECRET,
    "AZURE_STORAGE_SAS_TOKEN": _SECRET,
    **{f"{prefix}_{name}": _SECRET for prefix in ("AZURE_STORAGE", "AZ", "AZURE") for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET")},
    "AZ_SUBSCRIPTION_ID": _NAME,
    "AZURE_SUBSCRIPTION_ID": _NAME,
    "AZURE_AUTHORITY_HOST": _HOST_OR_URL,
    "AZURE_ACCESS_TOKEN": _SECRET,
    "AZURE_ACCESS_EXPIRES_ON_SECONDS": Scalar("a number of seconds", lambda text: int(_matching(_SECONDS, text))),
    **{name: Scalar("a text", lambda text: text, secret=True) for name in HDFS_NAMES},
}
"""Besides `HOST-headers`, and `https-host` with `headers`. By KServe's names and the SDKs' (reference: KServe's `s3_secret.go`,
`hf_secret.go`, `gcs_secret.go`, `azure_secret.go`, `hdfs_secret.go`; botocore; huggingface_hub; gcloud; azure-identity; adlfs). None of
them is a path. A subscription says nothing about where blobs are, and `N_THREADS` is about KServe's own client."""


def caller_of(namespace: str, service_account: str, secret: Mapping[str, str], node: Config) -> Caller:
    """Who a secret makes of somebody of this namespace. Raises: as `config_of_secret`."""
    parts = [part.encode() for pair in sorted(secret.items()) for part in pair]
    credential = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return Caller(namespace, service_account, credential, config_of_secret(secret, node))


def config_of_secret(secret: Mapping[str, str], node: Config) -> Config:
    """The settings of a tenant's sources: the tenant's keys, at the tenant's places or else the node's, with the node's CAs and patience.
    No file and no variable of this process is read.

    Raises:
        BadConfig: a name that a secret can't hold here, or a value that can't be used. Names it, and never a value.
    """
    values = _Values(secret)
    return Config(
        root=node.root,
        timeouts=node.timeouts,
        retry=node.retry,
        rates=node.rates,
        trust=node.trust,
        s3=_s3(values, node.s3),
        gs=_gs(values, node.gs),
        http=HttpOptions(ca_file=node.http.ca_file, headers=values.headers),
        hf=_hf(values, node.hf),
        fsspec=FsspecOptions(callers=CallersKeys(_azure(values, node.fsspec), _hdfs(values))),
    )


class _Values:
    """A secret's values by name, each of its kind. An empty one is none."""

    def __init__(self, secret: Mapping[str, str]) -> None:
        given = {name: text for name, text in secret.items() if text}
        self._values = {name: _read(name, given[name]) for name in NAMES if name in given}
        others = {name: text for name, text in given.items() if name not in NAMES}
        host, headers = others.pop(HTTPS_HOST, None), others.pop(HTTPS_HEADERS, None)
        if (host is None) != (headers is None):
            raise BadConfig(f"a secret holds `{HTTPS_HOST}` and `{HTTPS_HEADERS}` together, or neither")
        if refused := sorted(name for name in others if not name.endswith(KSERVES_SUFFIX)):
            hint = f"it may hold {', '.join(NAMES)}, HOST{KSERVES_SUFFIX}"
            raise BadConfig(f"a caller's secret can't hold {', '.join(ascii(name[:80]) for name in refused[:5])}", hint=hint)
        self.headers: dict[str, dict[str, str]] = {}
        for name, text in others.items():
            self.headers |= _headers(name, name, text)
        if host is not None and headers is not None:
            self.headers |= _headers(f"{HTTPS_HOST}, {HTTPS_HEADERS}", f"{host.strip()}{KSERVES_SUFFIX}", headers)

    def first(self, *names: str) -> Any:
        """The value of the first of these that is here, or None."""
        return next((self._values[name] for name in names if name in self._values), None)


def _read(name: str, text: str) -> Any:
    try:
        return NAMES[name].of_text(text)
    except BadConfig:
        raise BadConfig(f"`{name}` of a caller's secret is not {NAMES[name].wanted}") from None


def _headers(told: str, variable: str, text: str) -> dict[str, dict[str, str]]:
    """`told`: what the secret calls it."""
    try:
        return kserves_headers({variable: text}) or {}
    except BadConfig:
        wanted = "of a host, with a JSON object of headers that are not the request's own"
        raise BadConfig(f"{told[:80]!a} of a caller's secret is not {wanted}") from None


def _s3(values: _Values, node: S3Options) -> S3Options:
    """Where the secret names no endpoint the node's counts, with all that belongs to it."""
    endpoint = values.first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") or _kserves_endpoint(values)
    place = S3Options(
        endpoint=endpoint or node.endpoint,
        region=values.first("AWS_REGION", "AWS_DEFAULT_REGION") or (None if endpoint else node.region),
        path_style=None if endpoint else node.path_style,
        ca_file=node.ca_file,
        verify_tls=True if endpoint else node.verify_tls,
        anonymous=True,
    )
    if place.endpoint is not None and place.region is None:
        place = replace(place, region=DEFAULT_REGION)
    if values.first("S3_VERIFY_SSL") is not None:
        place = replace(place, verify_tls=values.first("S3_VERIFY_SSL"))
    if values.first("S3_USER_VIRTUAL_BUCKET"):
        place = replace(place, path_style=False)
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    access_key, secret_key, token = (values.first(name) for name in names)
    if values.first("awsAnonymousCredential") or (access_key, secret_key, token) == (None, None, None):
        return place
    return replace(place, anonymous=False, access_key=access_key, secret_key=secret_key, session_token=token)


def _kserves_endpoint(values: _Values) -> str | None:
    """`S3_ENDPOINT`, a host in KServe's secrets, with `S3_USE_HTTPS` beside it (`kserve_storage.py`)."""
    named = values.first("S3_ENDPOINT")
    if named is None:
        return None
    if "://" not in named:
        named = f"{'http' if values.first('S3_USE_HTTPS') is False else 'https'}://{named}"
    try:
        value: str = ENDPOINT.of_text(named)
    except BadConfig:
        raise BadConfig("`S3_ENDPOINT` of a caller's secret is not a host, or a URL") from None
    return value


def _gs(values: _Values, node: GcsOptions) -> GcsOptions:
    """A token before a key, as gcloud has it."""
    token, key = values.first("CLOUDSDK_AUTH_ACCESS_TOKEN"), values.first(GOOGLES_KEY)
    place = GcsOptions(endpoint=node.endpoint, ca_file=node.ca_file, anonymous=True)
    if token is not None:
        return replace(place, anonymous=False, access_token=token)
    if key is None:
        return place
    try:
        return replace(place, anonymous=False, credentials_json=key)
    except BadConfig as error:
        said = f"`{GOOGLES_KEY}` of a caller's secret can't be used: {error.message}"
        raise BadConfig(said, expected=error.expected, got=error.got, hint=error.hint) from None


def _hf(values: _Values, node: HubOptions) -> HubOptions:
    token = values.first("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    return HubOptions(endpoint=values.first("HF_ENDPOINT") or node.endpoint, ca_file=node.ca_file, token=token, anonymous=token is None)


def _azure(values: _Values, node: FsspecOptions) -> AzureKey:
    """Where the secret names no account the node's counts, as far as the URI names none. A principal before a token before a signature
    before a key, as KServe has it."""
    connection = values.first("AZURE_STORAGE_CONNECTION_STRING")
    account = values.first("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT", "AZURE_ACCOUNT_NAME")
    parts = {
        name.lower(): values.first(f"AZURE_STORAGE_{name}", f"AZ_{name}", f"AZURE_{name}")
        for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET")
    }
    sas, nodes = values.first("AZURE_STORAGE_SAS_TOKEN"), nodes_place(node)
    try:
        key = AzureKey(
            account=account,
            endpoint=values.first("AZURE_SERVICE_URL"),
            account_key=values.first("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_KEY"),
            sas=None if sas is None else sas.removeprefix("?"),
            authority=_authority(values.first("AZURE_AUTHORITY_HOST")),
            token=values.first("AZURE_ACCESS_TOKEN"),
            token_ends_at_s=values.first("AZURE_ACCESS_EXPIRES_ON_SECONDS") or 0,
            nodes_account=nodes.account,
            nodes_endpoint=nodes.endpoint,
            **parts,
        )
        return key if connection is None else key.with_connection(connection)
    except BadConfig as error:
        raise BadConfig(f"Azure's keys of a caller's secret can't be used: {error.message}", hint=error.hint) from None


def _authority(named: str | None) -> str:
    if named is None:
        return PUBLIC_AUTHORITY
    return named if "://" in named else f"https://{named}"


def _hdfs(values: _Values) -> HdfsKeys | None:
    texts = {name: values.first(name) for name in HDFS_NAMES if values.first(name) is not None}
    if not texts:
        return None
    keys = HdfsKeys(texts)
    for name in keys.headers:
        expect_settable(name)
    return keys
