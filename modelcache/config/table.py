"""Every setting: one entry each. A new one needs a field in `Config` (with its default) and its entry here; then
`python -m tools.settings` brings docs/operations.md and docs/config.example.toml up to date."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelcache.abc.grants import Isolation
from modelcache.abc.ingest import Route
from modelcache.config.fsspec_arguments import AZURE, AZURE_BESIDE, STORAGE, azure_of_variables, storage_of_variables
from modelcache.config.headers import HEADERS, expect_host, kserves_headers
from modelcache.config.kinds import MapOf
from modelcache.config.places import CLAIMS, MIRRORS, RATIO
from modelcache.config.scalars import (
    AGE,
    DURATION,
    ENDPOINT,
    FLAG,
    GCS_ENDPOINT,
    HUB_ENDPOINT,
    HUB_TOKEN,
    NETWORKS,
    ORIGINS,
    PATH,
    PROXY,
    RATE,
    SHARE,
    SIZE,
    SOCKET,
    TEXT,
    TIMEOUT,
    choice,
    count,
)
from modelcache.config.setting import Environ, Setting, Variable, setting
from modelcache.errors import BadConfig
from modelcache.loader.options import Gds

DEFAULT_LOW_WATERMARK = 0.80
ROUTES = {"auto": None, "buffered": Route.BUFFERED, "direct": Route.DIRECT}


def _low_watermark(values: Mapping[str, Any]) -> float:
    """A high watermark under the usual low one takes that down with it."""
    high: float = values["store.high_watermark"]
    return min(DEFAULT_LOW_WATERMARK, high)


def _kserves_endpoint(environ: Environ) -> str | None:
    """`S3_ENDPOINT`, a host in KServe's secrets, with `S3_USE_HTTPS` beside it (`kserve_storage.py`)."""
    endpoint = environ.get("S3_ENDPOINT", "")
    if not endpoint:
        return None
    if "://" not in endpoint:
        endpoint = f"{'https' if _flag(environ, 'S3_USE_HTTPS', True) else 'http'}://{endpoint}"
    value: str = ENDPOINT.of_text(endpoint)
    return value


def _kserves_virtual_bucket(environ: Environ) -> bool | None:
    """KServe's `false` is its default: the SDK chooses."""
    return False if _flag(environ, "S3_USER_VIRTUAL_BUCKET", False) else None


def _emulator(environ: Environ) -> str | None:
    """An emulator's address, the scheme optional, as gcsfs reads it."""
    address = environ.get("STORAGE_EMULATOR_HOST", "")
    if not address:
        return None
    value: str = GCS_ENDPOINT.of_text(address if "://" in address else f"http://{address}")
    return value


def _token_in_hf_home(environ: Environ) -> Path | None:
    """Where `hf auth login` puts its token."""
    home = environ.get("HF_HOME", "")
    if not home:
        return None
    value: Path = PATH.of_text(home)
    return value / "token"


def _http_proxy(environ: Environ) -> str | None:
    """In a CGI program HTTP_PROXY is a header that the client sent (httpoxy)."""
    return None if "REQUEST_METHOD" in environ else environ.get("HTTP_PROXY") or None


def _flag(environ: Environ, name: str, absent: bool) -> bool:
    text = environ.get(name, "")
    try:
        return bool(FLAG.of_text(text)) if text else absent
    except BadConfig as error:
        raise BadConfig(f"{name}: {error.message}", got=error.got) from None


SETTINGS: tuple[Setting, ...] = (
    setting("store.root", "root", PATH, "MODELCACHE_ROOT", "the store's directory", absent="see [the root](#the-root)"),
    setting(
        "store.create", "create", FLAG, "MODELCACHE_CREATE",
        "make a store in a new or empty directory; `false` where that means a disk that is not mounted",
    ),
    setting(
        "store.allow_fuse", "allow_fuse", FLAG, "MODELCACHE_ALLOW_FUSE",
        "a FUSE file system below the root is this machine's alone, with hard links (fuse-overlayfs, mergerfs)",
    ),
    setting("store.max_bytes", "limits.max_bytes", SIZE, "MODELCACHE_MAX_BYTES", "cap over all that the store holds", absent="none"),
    setting(
        "store.high_watermark", "limits.high_watermark", SHARE, "MODELCACHE_HIGH_WATERMARK",
        "share of the file system that may be in use, by anyone",
    ),
    setting(
        "store.low_watermark", "limits.low_watermark", SHARE, "MODELCACHE_LOW_WATERMARK",
        "where eviction stops; no more than the high one", default_of=_low_watermark,
    ),
    setting(
        "fetch.refresh_s", "refresh_s", AGE, "MODELCACHE_REFRESH_S",
        "age at which a mutable ref is resolved again; 0: at every call",
    ),
    setting(
        "fetch.requests", "engine.concurrency.most", count(1, 256), "MODELCACHE_REQUESTS",
        "most requests in flight, of all fetches together; 1 to 256",
    ),
    setting(
        "fetch.max_bytes_per_s", "rates.total", RATE, "MODELCACHE_MAX_BYTES_PER_S",
        "most that one process takes from all origins together", absent="none",
    ),
    setting(
        "fetch.write_route", "write_route", choice(ROUTES), "MODELCACHE_WRITE_ROUTE",
        "`buffered`: through the page cache, `direct`: around it, `auto`: by whether somebody reads next",
    ),
    setting("fetch.connect_timeout_s", "timeouts.connect_s", TIMEOUT, "MODELCACHE_CONNECT_TIMEOUT_S", "to connect, TLS included"),
    setting(
        "fetch.stall_timeout_s", "timeouts.stall_s", TIMEOUT, "MODELCACHE_STALL_TIMEOUT_S",
        "without a byte until a request is given up",
    ),
    setting(
        "fetch.retry_deadline_s", "retry.deadline_s", DURATION, "MODELCACHE_RETRY_DEADLINE_S",
        "how long a failing request is tried again",
    ),
    setting(
        "fetch.origin_max_bytes_per_s", "rates.of", MapOf(RATE, "<host>", expect_host), "MODELCACHE_ORIGIN_MAX_BYTES_PER_S",
        "most that one process takes from a `host` (or `host:port`), by its name",
        example='[fetch.origin_max_bytes_per_s]\n"models.example.org" = "100MiB"',
    ),
    setting(
        "archive.max_bytes", "archive.max_bytes", SIZE, "MODELCACHE_ARCHIVE_MAX_BYTES",
        "what one archive may expand to",
    ),
    setting(
        "archive.max_ratio", "archive.max_ratio", RATIO, "MODELCACHE_ARCHIVE_MAX_RATIO",
        "what one archive may expand to, in its own sizes; up to 64 MiB any may",
    ),
    setting(
        "gpu.pinned_bytes", "gpu.pinned_bytes", SIZE, "MODELCACHE_GPU_PINNED_BYTES",
        "page-locked host memory of a process, through which it loads to GPUs",
    ),
    setting(
        "gpu.gds", "gpu.gds", choice({str(gds): gds for gds in Gds}), "MODELCACHE_GPU_GDS",
        "GPUDirect Storage through kvikio: `auto` measures whether it helps (docs/loading.md)",
    ),
    setting(
        "mirror", "mirrors", MIRRORS, "MODELCACHE_MIRRORS",
        "prefixes of URIs that come from elsewhere; the variable is JSON",
        absent="none", example='[[mirror]]\nfrom = "hf://"\nto = "s3://models/hf/"\nendpoint = "https://host:9000"',
    ),
    setting(
        "pvc.root", "pvc.root", PATH, "MODELCACHE_PVC_ROOT",
        "directory that has each PersistentVolumeClaim mounted under its name", absent="none",
    ),
    setting(
        "pvc.claims", "pvc.claims", CLAIMS, "MODELCACHE_PVC_CLAIMS",
        "claim and where it is mounted; in the variable `CLAIM=/PATH,…`; goes before the root", absent="none",
        example='[pvc.claims]\nmodels = "/mnt/models-claim"',
    ),
    setting("http.ca_file", "http.ca_file", PATH, "MODELCACHE_HTTP_CA_FILE", "CA bundle for `https://`", absent="the system's"),
    setting(
        "http.headers", "http.headers", HEADERS, ("MODELCACHE_HTTP_HEADERS", Variable("HOST-headers", kserves_headers)),
        "sent to a host (or `host:port`) and to no other, and none that a request has of its own (`Host`, `Range`); KServe's variable is "
        "named after the host",
        example='[http.headers."models.example.org"]\nAuthorization = "Bearer TOKEN"',
    ),
    setting(
        "s3.endpoint", "s3.endpoint", ENDPOINT,
        (
            "MODELCACHE_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL",
            Variable("S3_ENDPOINT", _kserves_endpoint, ("S3_USE_HTTPS",)),
        ),
        "endpoint URL of `s3://`", absent="AWS",
    ),
    setting(
        "s3.region", "s3.region", TEXT, "MODELCACHE_S3_REGION AWS_REGION AWS_DEFAULT_REGION",
        "of the bucket", absent="the SDK's", example='"eu-west-1"',
    ),
    setting(
        "s3.profile", "s3.profile", TEXT, "MODELCACHE_S3_PROFILE AWS_PROFILE",
        "section of the SDK's own files", absent="the SDK's", example='"work"',
    ),
    setting("s3.ca_file", "s3.ca_file", PATH, "MODELCACHE_S3_CA_FILE AWS_CA_BUNDLE", "CA bundle of the endpoint", absent="the system's"),
    setting(
        "s3.verify_tls", "s3.verify_tls", FLAG, "MODELCACHE_S3_VERIFY_TLS S3_VERIFY_SSL",
        "whether the endpoint's certificate is checked; if not, whoever is on the way can read and alter",
    ),
    setting("s3.anonymous", "s3.anonymous", FLAG, "MODELCACHE_S3_ANONYMOUS awsAnonymousCredential", "sign nothing"),
    setting(
        "s3.path_style", "s3.path_style", FLAG, ("MODELCACHE_S3_PATH_STYLE", Variable("S3_USER_VIRTUAL_BUCKET", _kserves_virtual_bucket)),
        "bucket in the path instead of the host name (which KServe's variable asks for when it is true)", absent="by endpoint",
    ),
    setting(
        "gs.endpoint", "gs.endpoint", GCS_ENDPOINT, ("MODELCACHE_GS_ENDPOINT", Variable("STORAGE_EMULATOR_HOST", _emulator)),
        "endpoint URL of `gs://`; one of plain http (an emulator) is sent no credential that isn't named here", absent="Google",
    ),
    setting(
        "gs.credentials_file", "gs.credentials_file", PATH, "MODELCACHE_GS_CREDENTIALS_FILE",
        "service account key, user credential or workload identity configuration (JSON)", absent="the SDK's",
    ),
    setting(
        "gs.anonymous", "gs.anonymous", FLAG, "MODELCACHE_GS_ANONYMOUS",
        "send no credential; without it, none is sent where none is found",
    ),
    setting("gs.ca_file", "gs.ca_file", PATH, "MODELCACHE_GS_CA_FILE", "CA bundle of the endpoint", absent="the system's"),
    setting(
        "hf.endpoint", "hf.endpoint", HUB_ENDPOINT, "MODELCACHE_HF_ENDPOINT HF_ENDPOINT",
        "the Hub, or a mirror that speaks its API",
    ),
    setting(
        "hf.token", "hf.token", HUB_TOKEN, "MODELCACHE_HF_TOKEN HF_TOKEN HUGGING_FACE_HUB_TOKEN",
        "access token; sent to the endpoint alone", absent="what the token file holds",
    ),
    setting(
        "hf.token_file", "hf.token_file", PATH,
        ("MODELCACHE_HF_TOKEN_FILE", "HF_TOKEN_PATH", Variable("HF_HOME", _token_in_hf_home)),
        "the file that `hf auth login` writes; read again when the hub refuses what it held",
        absent="`$XDG_CACHE_HOME/huggingface/token`, `~/.cache/huggingface/token`",
    ),
    setting(
        "hf.anonymous", "hf.anonymous", FLAG, "MODELCACHE_HF_ANONYMOUS HF_HUB_DISABLE_IMPLICIT_TOKEN",
        "send no token, whatever there is",
    ),
    setting("hf.ca_file", "hf.ca_file", PATH, "MODELCACHE_HF_CA_FILE", "CA bundle of the endpoint and its CDN", absent="the system's"),
    setting(
        "fsspec.hdfs_secret_dir", "fsspec.hdfs_secret_dir", PATH, "MODELCACHE_HDFS_SECRET_DIR HDFS_SECRET_DIR",
        "where KServe's secret of HDFS lies: then `hdfs` and `webhdfs` URIs are paths, and the secret names the name nodes "
        "([uris.md](uris.md#schemes))",
        absent="none: the URI names its name node",
    ),
    setting(
        "fsspec.storage", "fsspec.storage", STORAGE, (Variable("MODELCACHE_FSSPEC_<SCHEME>", storage_of_variables),),
        "arguments of fsspec's filesystem of a scheme (its `storage_options`); the variables, JSON, count in place of all of the file's",
        absent="none", example='[fsspec.storage.az]\naccount_name = "models"',
    ),
    setting(
        "fsspec.azure", "fsspec.azure", AZURE,
        (Variable("AZURE_STORAGE_ACCOUNT_NAME", azure_of_variables, AZURE_BESIDE),),
        "arguments of `az`, `abfs` and `abfss` that `fsspec.storage` doesn't name; the variables are adlfs's, KServe's and the SDK's",
        absent="none", example='[fsspec.azure]\naccount_name = "models"',
    ),
    setting(
        "agent.socket", "agent_socket", SOCKET, "MODELCACHE_AGENT",
        "the node's agent, which commands ask where they can ([cli.md](cli.md#the-agent)); `none`: straight to the store",
    ),
    setting(
        "permission.grant_ttl_s", "trust.grant_ttl_s", DURATION, "MODELCACHE_GRANT_TTL_S",
        "how long a caller's proof counts ([semantics.md](semantics.md#permission))",
    ),
    setting(
        "permission.trusted_origins", "trust.origins", ORIGINS, "MODELCACHE_TRUSTED_ORIGINS",
        "origins whose stated sha256 saves callers a fetch; none: all is fetched",
    ),
    setting(
        "permission.proof_requests", "trust.proof_requests", count(1, 64), "MODELCACHE_PROOF_REQUESTS",
        "one-byte reads in flight for one proof",
    ),
    setting(
        "permission.refused_networks", "trust.refused_networks", NETWORKS, "MODELCACHE_REFUSED_NETWORKS",
        "where no caller's URI may lead, by name, address or redirect; none: anywhere",
    ),
    setting(
        "permission.isolation", "trust.isolation", choice({str(isolation): isolation for isolation in Isolation}), "MODELCACHE_ISOLATION",
        "`namespace`: callers of different namespaces share no file, no block and no fetch ([semantics.md](semantics.md#isolation))",
    ),
    setting(
        "proxy.http", "proxies.http", PROXY, ("http_proxy", Variable("HTTP_PROXY", _http_proxy, ("REQUEST_METHOD",))),
        "for `http://` origins; where `REQUEST_METHOD` is set (a CGI program), the one in capitals is not believed", absent="none",
    ),
    setting("proxy.https", "proxies.https", PROXY, "https_proxy HTTPS_PROXY", "for `https://` origins", absent="none"),
    setting(
        "proxy.no_proxy", "proxies.no_proxy", TEXT, "no_proxy NO_PROXY",
        "hosts spoken to directly, divided by commas", absent="none", example='"10.0.0.0/8,.internal"',
    ),
)  # fmt: skip
"""In the order of the documentation. A setting whose default depends on others stands after them."""
