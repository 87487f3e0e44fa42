"""Filesystems of a caller of a shared store: made of what it brings; neither a variable, nor a file, nor an identity of this process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from modelcache.errors import AccessDenied, BadConfig, InvalidUri, ModelCacheError, UnknownScheme
from modelcache.sources.any_fsspec.azure import opener
from modelcache.sources.any_fsspec.azure_key import AzureKey, default_endpoint, is_blob_host
from modelcache.sources.any_fsspec.filesystems import Filesystem, Home, class_of, fingerprint_of, home_of, kserves_home
from modelcache.sources.any_fsspec.hdfs import HDFS_SCHEMES, read_secret
from modelcache.sources.any_fsspec.options import AZURE_SCHEMES, CallersKeys, FsspecOptions
from modelcache.sources.any_fsspec.sessions import Ways, session_of
from modelcache.uri import StorageUri, UriSecrets

INSTALL = "pip install 'modelcache[azure]'"


def callers_home(uri: StorageUri, secrets: UriSecrets, keys: CallersKeys, ways: Ways) -> Home:
    """
    Raises:
        AccessDenied: what reads this scheme would use this machine's identity; or the keys are another account's.
        BadConfig: the keys don't say where.
        InvalidUri, UnknownScheme: as of `home_of`.
    """
    if uri.scheme in AZURE_SCHEMES:
        return _azure(uri, secrets, keys, ways)
    if uri.scheme in HDFS_SCHEMES and keys.hdfs is not None:
        secret = keys.hdfs.secret()
        return kserves_home(uri, secrets, lambda: secret, _own_webhdfs(str(uri), ways))
    if uri.scheme == "webhdfs":
        home = home_of(uri, secrets, FsspecOptions())
        return Home(home.scheme, _own_webhdfs(str(uri), ways), home.root, home.prefix, home.arguments, home.endpoint)
    hint = "have the secret name the name nodes, HDFS_NAMENODE" if uri.scheme in HDFS_SCHEMES else None
    raise AccessDenied(f"no caller's own credential reads `{uri.scheme}://` here", address=str(uri), hint=hint)


def as_blobs(uri: StorageUri, keys: CallersKeys | None) -> StorageUri | None:
    """What KServe reads by Azure's keys: `https://ACCOUNT.blob.core.windows.net/CONTAINER/…`, a blob or all below that name; None: it is no
    such place, or there is no key of its account, and so a file of a web server."""
    if keys is None or not keys.azure.given or uri.scheme != "https" or uri.query or not is_blob_host(uri.authority):
        return None
    if keys.azure.account not in (None, uri.authority.partition(".")[0]):
        return None
    container, _, path = unquote(uri.path).partition("/")
    return replace(uri, scheme="abfs", authority=f"{container}@{uri.authority}", path=path)


def nodes_place(node: FsspecOptions) -> AzureKey:
    """Where Azure's blobs are by the owner's settings, without a credential; nowhere, if those can't tell."""
    told = node.arguments("az")
    account, host, connection = (told.get(name) for name in ("account_name", "account_host", "connection_string"))
    try:
        place = AzureKey(account=account, endpoint=None if host is None else f"https://{host}")
        if connection is not None:
            place = AzureKey().with_connection(connection)
    except BadConfig:  # the owner is told when the owner uses them
        return AzureKey()
    return AzureKey(account=place.account, endpoint=place.endpoint)


def leads_elsewhere(uri: StorageUri, keys: CallersKeys, node: FsspecOptions) -> bool:
    """Whether a caller's keys name another place for a URI than the owner's settings do."""
    uri = as_blobs(uri, keys) or uri
    if uri.scheme in AZURE_SCHEMES:
        if keys.azure.account is None and keys.azure.endpoint is None:
            return False
        host, nodes = uri.authority.partition("@")[2], nodes_place(node)
        try:
            return keys.azure.at(host, str(uri)).endpoint != nodes.at(host, str(uri)).endpoint
        except ModelCacheError:  # told to who asks there
            return True
    if uri.scheme not in HDFS_SCHEMES or keys.hdfs is None:
        return False
    try:
        nodes_secret = None if node.hdfs_secret_dir is None else read_secret(node.hdfs_secret_dir)
    except BadConfig:
        nodes_secret = None
    own = keys.hdfs.secret()
    return nodes_secret is None or any(getattr(own, name) != getattr(nodes_secret, name) for name in ("places", "ca_sha256", "verified"))


def _azure(uri: StorageUri, secrets: UriSecrets, keys: CallersKeys, ways: Ways) -> Home:
    address = str(uri)
    if secrets:
        raise InvalidUri(f"`{uri.scheme}://` URIs take no credential", address=address, hint="it is in the caller's secret")
    container, _, host = uri.authority.partition("@")
    key = keys.azure.at(host, address)
    usual = AzureKey().at(host, address).endpoint if host else None
    where = {"account_name": key.account} if key.endpoint == default_endpoint(str(key.account)) else {"endpoint": key.endpoint}
    told_apart = "" if key.endpoint == usual else fingerprint_of([where, ""])  # as the owner's with that account
    try:
        kind = opener(key, str(key.endpoint), ways)
    except ImportError:
        refusal = UnknownScheme(f"the package that serves `{uri.scheme}://` is not installed", address=address, hint=INSTALL)
    else:
        return Home(uri.scheme, kind, container, f"{container}/", {}, f"{uri.scheme}://{uri.authority}{told_apart}")
    raise refusal


def _own_webhdfs(address: str, ways: Ways) -> Filesystem:
    """What makes WebHDFS's filesystems with a session of the caller's."""
    kind = class_of("webhdfs", address)

    def make(**given: Any) -> Filesystem:
        given.pop("skip_instance_cache", None)

        class Own(kind):  # type: ignore[misc,valid-type]  # fsspec has no types
            cachable = False

            def __init__(self, **_: object) -> None:
                super().__init__(**given)  # and nothing that fsspec's own configuration says

            def _connect(self) -> None:
                super()._connect()
                fsspecs: Any = self.session  # type: ignore[has-type,unused-ignore]
                self.session = session_of(ways, verify=self.session_verify, cert=self.session_cert)
                self.session.auth = fsspecs.auth
                fsspecs.close()

        return Own()

    return make
