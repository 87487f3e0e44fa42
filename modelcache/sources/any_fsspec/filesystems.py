"""fsspec's classes: which one serves a scheme, and with which arguments. The one place that imports fsspec."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from modelcache.errors import BadConfig, InvalidUri, ModelCacheError, OriginBusy, UnknownScheme
from modelcache.sources.any_fsspec.hdfs import HDFS_SCHEMES, HdfsSecret, read_secret
from modelcache.sources.any_fsspec.options import AZURE_SCHEMES, FsspecOptions
from modelcache.sources.any_fsspec.sftp import verifying
from modelcache.uri import StorageUri, UriSecrets

Filesystem = Any
"""fsspec has no types."""

_LAYER = "it shows another filesystem's files, and would hide where they come from"
_OWN = "modelcache serves it by a source of its own"
_NO_ORIGIN = "it is no place that a model could be fetched from"
REFUSED = (
    dict.fromkeys(
        ("reference", "cached", "simplecache", "blockcache", "filecache", "generic", "dir", "async_wrapper", "asyncwrapper"), _LAYER
    )
    | dict.fromkeys(("zip", "tar", "libarchive"), "an archive is named by the URI of its file")
    | dict.fromkeys(("file", "local", "asynclocal", "arrow_hdfs", "s3", "s3a", "gs", "gcs", "hf", "http", "https", "modelcache"), _OWN)
    | dict.fromkeys(("dask", "jupyter", "jlab", "data", "pyscript"), _NO_ORIGIN)
)
"""Schemes of fsspec that are not served, and why."""
WHOLE = frozenset({"github", "gist", "git"})
"""Their filesystems fetch the whole file whatever range is asked for."""
_SECRET = re.compile(r"pass|secret|key|token|sas|cred|sign|auth|pwd|cert|connection_string", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Home:
    """Where a source's filesystem is and how it is made.

    Attributes:
        root: what the filesystem calls the place that the URI's authority names.
        prefix: what it puts before the paths of that place: `bucket/`, `/`, or nothing.
        arguments: of the class; secrets among them.
        endpoint: for `Origin`: scheme, authority, and a digest of the arguments that say where and as whom.
        hdfs: reads what a secret of HDFS says, for each instance; None: `arguments` say all.
        renewable: whether a new instance may have another credential than the one before, or ask another name node: KServe's secret may be
            replaced while a fetch goes on.
        ca_sha256, verified: of `Origin`.
    """

    scheme: str
    kind: Filesystem = field(repr=False)
    root: str
    prefix: str
    arguments: Mapping[str, Any] = field(repr=False)
    endpoint: str
    hdfs: Callable[[], HdfsSecret] | None = field(default=None, repr=False)
    renewable: bool = False
    ca_sha256: str | None = None
    verified: bool = True

    def make(self, prepare: Callable[[Filesystem], Filesystem]) -> Filesystem:
        """A new instance, prepared; may connect.

        Raises:
            UnknownScheme: a package that it only now imports is not installed.
            BadConfig: its arguments don't do, or the secret leads to another place than when the source was made.
        """
        refusal: ModelCacheError
        try:
            if self.hdfs is not None:
                return self._active(self.hdfs(), prepare)
            return prepare(self.kind(**self.arguments, skip_instance_cache=True))
        except ImportError:
            refusal = missing_package(self.scheme, self.endpoint.partition("?")[0])
        except (ValueError, TypeError) as error:  # its text may hold what it was given
            refusal = _unusable(self.scheme, self.endpoint.partition("?")[0], type(error).__name__)
        raise refusal

    def _active(self, hdfs: HdfsSecret, prepare: Callable[[Filesystem], Filesystem]) -> Filesystem:
        """Of the first name node that serves; of one alone, that one, whatever it says."""
        if not self.endpoint.endswith(fingerprint_of(hdfs.places)):
            raise BadConfig("the secret of HDFS leads to another place than when this fetch began", address=self.endpoint.partition("?")[0])
        failure: OSError | OriginBusy | None = None
        for node in hdfs.nodes:
            made = prepare(self.kind(**node, skip_instance_cache=True))
            made.session.headers.update(hdfs.headers)
            if len(hdfs.nodes) == 1:
                return made
            try:
                made.info("/")
            except (OSError, OriginBusy) as error:  # not there, or in standby
                made.session.close()
                failure = error
            else:
                return made
        assert failure is not None
        raise failure

    def path(self, uri: StorageUri) -> str:
        """What the filesystem calls the place that a URI names: a `?` in it, and what follows, is a part of the name; one at its end
        is not.

        Raises InvalidUri: it names a version, which adlfs would not look at.
        """
        if names_version(uri) and not self.arguments.get("version_aware"):
            hint = f"`version_aware = true` in [fsspec.storage.{self.scheme}] has adlfs read versions; a name that has this ends with `?`"
            raise InvalidUri("it names a version, and adlfs was not told to read versions", address=str(uri), got=uri.query, hint=hint)
        path = f"{self.prefix}{uri.path}" if uri.path else self.root or self.prefix
        return f"{path}?{uri.query.removesuffix('?')}" if uri.query else path


def names_version(uri: StorageUri) -> bool:
    """Whether it ends with a version as adlfs writes them; of other filesystems that would be a part of the name."""
    return uri.scheme in AZURE_SCHEMES and uri.query.startswith("versionid=") and not uri.query.endswith("?")


def home_of(uri: StorageUri, secrets: UriSecrets, options: FsspecOptions) -> Home:
    """
    Raises:
        UnknownScheme: refused, unknown to fsspec, or its package is not installed.
        InvalidUri: signing parameters, or arguments of the wrong kind.
    """
    if uri.scheme in HDFS_SCHEMES and options.hdfs_secret_dir is not None:
        return _kserves_hdfs(uri, secrets, options.hdfs_secret_dir)
    kind = class_of(uri.scheme, str(uri))
    if secrets.query:
        hint = f"give the credential to the filesystem: MODELCACHE_FSSPEC_{uri.scheme.upper()}='{{…}}', JSON of its storage options"
        raise InvalidUri(f"`{uri.scheme}://` URIs take no signing parameters", address=str(uri), hint=hint)
    bare = f"{uri.scheme}://{uri.authority}"
    configured = options.arguments(uri.scheme)
    of_uri = _arguments_of_uri(kind, uri, secrets)
    if uri.scheme == "oss" and not configured.get("endpoint"):
        hint = 'MODELCACHE_FSSPEC_OSS=\'{"endpoint": "https://oss-REGION.aliyuncs.com", …}\', or [fsspec.storage.oss]'
        raise BadConfig("an endpoint is needed for `oss://`", address=str(uri), hint=hint)
    root: str = kind._strip_protocol(bare)
    prefix: str = kind._strip_protocol(f"{bare}/x").removesuffix("x")
    kind, arguments = verifying(kind, configured | of_uri, bare)
    return Home(uri.scheme, kind, root, prefix, arguments, bare + _told_apart(configured, secrets))


def _kserves_hdfs(uri: StorageUri, secrets: UriSecrets, directory: Path) -> Home:
    return kserves_home(uri, secrets, lambda: read_secret(directory), class_of("webhdfs", str(uri)))


def kserves_home(uri: StorageUri, secrets: UriSecrets, read: Callable[[], HdfsSecret], kind: Filesystem) -> Home:
    """As KServe reads it: the whole body is a path, and the secret says where."""
    if secrets:
        raise InvalidUri(f"`{uri.scheme}://` URIs take no credential where KServe's secret of HDFS has it", address=str(uri))
    hdfs = read()
    root = f"{hdfs.root}/{uri.authority}"
    endpoint = f"{uri.scheme}://{uri.authority}{fingerprint_of(hdfs.places)}"
    return Home(uri.scheme, kind, root, f"{root}/", {}, endpoint, read, True, hdfs.ca_sha256, hdfs.verified)


def class_of(scheme: str, address: str) -> Filesystem:
    if scheme in REFUSED:
        raise UnknownScheme(f"`{scheme}://` is not served: {REFUSED[scheme]}", address=address, got=scheme)
    try:
        from fsspec.registry import get_filesystem_class
    except ImportError:
        hint = "check the spelling, or pip install 'modelcache[fsspec]'"
        raise UnknownScheme(f"`{scheme}://` needs fsspec", address=address, got=scheme, hint=hint) from None
    try:
        return get_filesystem_class(scheme)
    except ImportError:
        missing = missing_package(scheme, address)
    except ValueError:
        hint = "check the spelling; a package that brings an fsspec filesystem for it would make it known"
        missing = UnknownScheme(f"no source serves `{scheme}://`, and fsspec knows none", address=address, got=scheme, hint=hint)
    raise missing


def missing_package(scheme: str, address: str) -> UnknownScheme:
    from fsspec.registry import known_implementations

    hint = known_implementations.get(scheme, {}).get("err") or "install the package that its fsspec filesystem needs"
    return UnknownScheme(f"the package that serves `{scheme}://` is not installed", address=address, got=scheme, hint=hint)


def _unusable(scheme: str, address: str, kind: str) -> BadConfig:
    variable = f"MODELCACHE_FSSPEC_{scheme.upper()}"
    hint = f"they are in [fsspec.storage.{scheme}], or {variable}, JSON, by the names of fsspec's filesystem"
    if scheme in AZURE_SCHEMES:
        hint = f"an account is needed, as in `abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/…`, AZURE_STORAGE_ACCOUNT_NAME or {variable}"
    return BadConfig(f"the `{scheme}` filesystem can't be made with the arguments that it has ({kind})", address=address, hint=hint)


def _arguments_of_uri(kind: Filesystem, uri: StorageUri, secrets: UriSecrets) -> dict[str, Any]:
    """What the class itself reads from a URL with userinfo in it, percent-decoded."""
    userinfo = "" if secrets.userinfo is None else f"{secrets.userinfo}@"
    found = kind._get_kwargs_from_urls(f"{uri.scheme}://{userinfo}{uri.authority}/")
    raw = {part for part in (secrets.userinfo or "").split(":", 1) if part}
    arguments = {name: unquote(value) if isinstance(value, str) and value in raw else value for name, value in found.items()}
    if raw and not any(value in raw or unquote(str(value)) in {unquote(part) for part in raw} for value in found.values()):
        raise InvalidUri(f"`{uri.scheme}://` URIs take no user or password", address=str(uri))
    return arguments


def _told_apart(configured: Mapping[str, Any], secrets: UriSecrets) -> str:
    """What keeps two places with one URI apart: other accounts, endpoints, users. Without what could be a secret."""
    places = _without_secrets(configured)
    user = (secrets.userinfo or "").partition(":")[0]
    if not places and not user:
        return ""
    return fingerprint_of([places, user])


def fingerprint_of(places: Any) -> str:
    """What tells places with one URI apart, for the end of an endpoint."""
    text = json.dumps(places, sort_keys=True, default=str)
    return f"?{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _without_secrets(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    kept = {str(name): _without_secrets(inner) for name, inner in value.items() if not _SECRET.search(str(name))}
    if isinstance(connection := value.get("connection_string"), str):  # Azure's: `AccountName=…;AccountKey=…;BlobEndpoint=…`
        kept["connection"] = _without_secrets(dict(pair.split("=", 1) for pair in connection.split(";") if "=" in pair))
    return {name: inner for name, inner in kept.items() if inner != {}}
