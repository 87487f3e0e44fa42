"""Whose right a prewarm has: the secrets that a cache names, read from its own namespace by KServe's names for what is in them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from daemonset.tenants import HDFS_NAMES, HTTPS_HEADERS, HTTPS_HOST, NAMES, caller_of, config_of_secret
from modelcache.config import Config
from modelcache.config.headers import KSERVES_SUFFIX
from modelcache.errors import AccessDenied, BadConfig, NotFound
from modelcache.k8s.api import ApiServer, Object
from modelcache.k8s.names import S3_ANNOTATIONS, STORAGE_SECRET, expect_label, expect_subdomain
from modelcache.k8s.node import Storage, WantedModel
from modelcache.patience import Cancellation
from modelcache.permission import Caller
from modelcache.sources.any_fsspec.hdfs import CERTIFICATES, HDFS_SCHEMES

KSERVES_FALLBACKS = {"awsAccessKeyID": "AWS_ACCESS_KEY_ID", "awsSecretAccessKey": "AWS_SECRET_ACCESS_KEY"}
"""Where KServe's configuration names no keys of its own (`s3_secret.go`)."""
OF_ANNOTATIONS = {
    "endpoint": "S3_ENDPOINT",
    "usehttps": "S3_USE_HTTPS",
    "region": "AWS_REGION",
    "verifyssl": "S3_VERIFY_SSL",
    "usevirtualbucket": "S3_USER_VIRTUAL_BUCKET",
    "useanoncredential": "awsAnonymousCredential",
}
"""Of a secret with S3 keys, behind `S3_ANNOTATIONS` (`s3_secret.go`)."""
OF_STORAGE = {
    "endpoint_url": "AWS_ENDPOINT_URL",
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "region": "AWS_DEFAULT_REGION",
    "verify_ssl": "S3_VERIFY_SSL",
    "anonymous": "awsAnonymousCredential",
}
"""Of an entry of `type: s3` (`kserve_storage.py`)."""
OF_HDFS_FILES = (*CERTIFICATES, "KERBEROS_KEYTAB")
"""Of an entry of `type: hdfs` or `webhdfs`, whose names are those of a secret's, these are in base64 (`kserve_storage.py`)."""
OF_IDENTITIES = ("_TENANT_ID", "_CLIENT_ID", "_SUBSCRIPTION_ID")
"""Ends of names in which Azure says who somebody is, without anything that proves it."""
NOT_TAKEN = {"MODELSCOPE_API_TOKEN": "no source here reads ModelScope"}
"""By these KServe knows credentials that nothing here reads with; and why."""


class Credentials:
    """Reads them anew each time: a secret changes, and a grant ends. Safe for many threads."""

    def __init__(self, api: ApiServer, config: Config, *, cluster_namespace: str | None) -> None:
        """
        Args:
            cluster_namespace: where the secrets of cluster caches are; None: cluster caches have none.
        """
        self._api = api
        self._config = config
        self._cluster_namespace = cluster_namespace

    def caller_of(self, model: WantedModel, cancel: Cancellation) -> Caller | None:
        """Who fetches a model; None: the node itself, for a cluster cache that names no credential.

        Raises:
            AccessDenied: the agent may not read a secret; says what its owner can do.
            NotFound, BadConfig, Unavailable, ProtocolViolation, Cancelled.
        """
        if model.storage is None and model.service_account is None:
            return None if model.namespace is None else self._caller(model.namespace, model, {})
        namespace = model.namespace or self._cluster_namespace
        if namespace is None:
            raise BadConfig("the cache names a credential, and no namespace is set for those of cluster caches", hint="--secrets-namespace")
        if model.storage is not None:
            return self._caller(namespace, model, self._storage(namespace, model.storage, cancel))
        return self._caller(namespace, model, self._service_accounts(namespace, str(model.service_account), cancel))

    def _caller(self, namespace: str, model: WantedModel, secret: Mapping[str, str]) -> Caller:
        return caller_of(namespace, model.service_account or "default", secret, self._config)

    def _service_accounts(self, namespace: str, name: str, cancel: Cancellation) -> dict[str, str]:
        """All that its secrets hold which KServe would use; the agent may be let see only some of them."""
        account = self._get(namespace, "serviceaccounts", name, cancel)
        names = [str(each["name"]) for each in account.get("secrets") or () if each.get("name")]
        found: dict[str, str] = {}
        refused: list[AccessDenied | BadConfig | NotFound] = []
        for each in names:
            try:
                found |= values_of(self._get(namespace, "secrets", each, cancel), self._config)
            except (AccessDenied, BadConfig, NotFound) as error:  # another of them may be the one that it takes
                refused.append(error)
        if not found and refused:
            raise refused[0]
        return found

    def _storage(self, namespace: str, storage: Storage, cancel: Cancellation) -> dict[str, str]:
        secret = self._get(namespace, "secrets", STORAGE_SECRET, cancel)
        kind = storage.parameters.get("type")
        key = storage.key or (f"default_{kind}" if kind else "default")
        text = _data(secret).get(key)
        if text is None:
            raise BadConfig(f"the secret `{STORAGE_SECRET}` of namespace `{namespace}` has no entry `{key}`")
        return values_of_storage(text, storage.parameters, f"`{key}` of the secret `{STORAGE_SECRET}` of namespace `{namespace}`")

    def _get(self, namespace: str, resource: str, name: str, cancel: Cancellation) -> Object:
        expect_label("a namespace", namespace)
        expect_subdomain("a secret or a service account", name)
        try:
            return self._api.get(f"/api/v1/namespaces/{namespace}/{resource}/{name}", cancel)
        except AccessDenied as error:
            what = {"secrets": f"{name}", "serviceaccounts": f"SECRET --service-account {name}"}[resource]
            kind = {"secrets": "secret", "serviceaccounts": "service account"}[resource]
            raise AccessDenied(
                f"the agent may not read the {kind} `{name}` of namespace `{namespace}`",
                address=error.address,
                hint=f"`modelcache grant {what} -n {namespace}` renders what the namespace's owner applies",
            ) from None


def values_of(secret: Object, config: Config) -> dict[str, str]:
    """What a secret of a service account holds that a source uses, under the names of `tenants.NAMES`; the rest is somebody else's.

    Raises:
        BadConfig: it is a credential of a kind that is not taken here, or lacks a part. Names it, and never a value.
    """
    data = {KSERVES_FALLBACKS.get(name, name): text for name, text in _data(secret).items()}
    others = () if "HDFS_NAMENODE" in data else HDFS_NAMES  # of somebody else's there
    found = {name: text for name, text in data.items() if name not in others and (name in NAMES or name in (HTTPS_HOST, HTTPS_HEADERS))}
    found |= {name: text for name, text in data.items() if name.endswith(KSERVES_SUFFIX)}
    if not found and (refused := [name for name in NOT_TAKEN if name in data]):
        said = f"the secret `{secret['metadata']['name']}` holds `{refused[0]}`, which is not taken here"
        raise BadConfig(said, hint=NOT_TAKEN[refused[0]])
    if "AWS_SECRET_ACCESS_KEY" in found:
        annotations = secret["metadata"].get("annotations") or {}
        told = {variable: annotations.get(f"{S3_ANNOTATIONS}{name}") for name, variable in OF_ANNOTATIONS.items()}
        found |= {variable: str(text) for variable, text in told.items() if text}
    azures = [name for name in found if name.startswith(("AZ_", "AZURE_"))]
    if azures and len(azures) < len(found) and all(name.endswith(OF_IDENTITIES) for name in azures):
        found = {name: text for name, text in found.items() if name not in azures}  # of a workload's identity, beside a credential
    elif azures or "HDFS_NAMENODE" in found:
        config_of_secret(found, config)  # what lacks a part hides nothing of another secret
    return found


def values_of_storage(text: str, parameters: Mapping[str, str], told: str) -> dict[str, str]:
    """The same, of an entry of KServe's storage secret, which parameters of the cache override. Raises BadConfig."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise BadConfig(f"{told} is no JSON object of texts")
    entry |= parameters
    kind = entry.get("type")
    if kind == "hf":
        return {"HF_TOKEN": entry["token"]} if entry.get("token") else {}
    if kind in HDFS_SCHEMES:
        if not entry.get("HDFS_NAMENODE"):
            raise BadConfig(f"{told} names no name node", hint="HDFS_NAMENODE, as `https://HOST:PORT`")
        return {name: _decoded(name, entry[name], told) for name in HDFS_NAMES if entry.get(name)}
    if kind != "s3":
        raise BadConfig(f"{told} is of a type that is not taken here", expected="s3, hf, hdfs, webhdfs", got=ascii(str(kind)[:40]))
    return {variable: entry[name] for name, variable in OF_STORAGE.items() if entry.get(name)}


def _decoded(name: str, text: str, told: str) -> str:
    if name not in OF_HDFS_FILES:
        return text
    try:
        return base64.b64decode(text, validate=True).decode("utf-8", "replace")
    except ValueError:
        raise BadConfig(f"`{name}` in {told} is no base64") from None


def _data(secret: Object) -> dict[str, str]:
    """What is no UTF-8 is nothing that a source can use, and becomes no text of another meaning."""
    return {name: base64.b64decode(value).decode("utf-8", "replace") for name, value in (secret.get("data") or {}).items()}
