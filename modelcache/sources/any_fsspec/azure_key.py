"""As whom, and where, a caller reads Azure's blobs."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field, replace
from typing import Self

from modelcache.errors import AccessDenied, BadConfig, InvalidUri
from modelcache.sources.endpoints import checked_endpoint

PUBLIC_AUTHORITY = "https://login.microsoftonline.com"
"""Of Azure's public cloud (azure-identity, `AzureAuthorityHosts`)."""
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_HOST = re.compile(r"([a-z0-9]{3,24})\.(?:blob|dfs)\.(core\.(?:windows\.net|usgovcloudapi\.net|chinacloudapi\.cn))")
_TENANT = re.compile(r"[A-Za-z0-9.-]+")
_OF_CONNECTION = {"accountname": "account", "accountkey": "account_key", "sharedaccesssignature": "sas", "blobendpoint": "endpoint"}


@dataclass(frozen=True, slots=True)
class AzureKey:
    """One credential, and the account that it is for. Without a credential: anybody, for what is public.

    Attributes:
        account: the storage account's name; None: the URI names it.
        nodes_account, nodes_endpoint: what counts where neither says one.
        endpoint: `http(s)://host[:port][/path]` of its blobs, where that is not Azure's own.
        account_key: of the account, base64.
        sas: a shared access signature, without the `?`.
        tenant_id, client_id, client_secret: a principal of Entra ID.
        authority: where it signs in.
        token, token_ends_at_s: an access token for storage, and when it ends (Unix time; 0: unknown).
    """

    account: str | None = None
    endpoint: str | None = None
    account_key: str | None = field(default=None, repr=False)
    sas: str | None = field(default=None, repr=False)
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    authority: str = PUBLIC_AUTHORITY
    token: str | None = field(default=None, repr=False)
    token_ends_at_s: int = 0
    nodes_account: str | None = None
    nodes_endpoint: str | None = None

    def __post_init__(self) -> None:
        """Raises BadConfig: a part is missing or can't be used. Names it, and never a value."""
        if self.account is not None and not _ACCOUNT.fullmatch(self.account):
            raise BadConfig("the name of an Azure account is 3 to 24 lower-case letters and digits")
        if self.endpoint is not None:
            _scheme_of(self.endpoint, "Azure's endpoint")
        if _scheme_of(self.authority, "Azure's authority") != "https":
            raise BadConfig("Azure's authority is an `https://` URL")
        principal = {"a tenant id": self.tenant_id, "a client id": self.client_id, "a client secret": self.client_secret}
        missing = [name for name, value in principal.items() if not value]
        if 0 < len(missing) < len(principal):
            hint = "a client id alone would be a managed or workload identity, and those are the node's"
            raise BadConfig(f"Azure's principal lacks {' and '.join(missing)}", hint=hint)
        if self.tenant_id is not None and not _TENANT.fullmatch(self.tenant_id):
            raise BadConfig("Azure's tenant id has letters, digits, `.` and `-`")
        if self.account_key is not None and not _is_base64(self.account_key):
            raise BadConfig("Azure's account key is no base64")
        if self.sas is not None and "sig=" not in self.sas:
            raise BadConfig("Azure's shared access signature has no `sig`")

    @property
    def given(self) -> bool:
        """Whether there is a credential."""
        return self.signs_in or self.account_key is not None or self.sas is not None

    @property
    def signs_in(self) -> bool:
        """Whether a bearer token is what it reads with."""
        return self.client_secret is not None or self.token is not None

    def with_connection(self, text: str) -> Self:
        """What a connection string says, over this.

        Raises: BadConfig: it says nothing that can be used; names no value.
        """
        pairs = dict(pair.split("=", 1) for pair in text.strip().split(";") if "=" in pair)
        told = {name.strip().lower(): value.strip() for name, value in pairs.items()}
        found = {field: told[name] for name, field in _OF_CONNECTION.items() if told.get(name)}
        if "sas" in found:
            found["sas"] = found["sas"].removeprefix("?")
        if "endpoint" not in found and "account" in found:
            scheme, suffix = told.get("defaultendpointsprotocol", "https"), told.get("endpointsuffix", "core.windows.net")
            found["endpoint"] = f"{scheme}://{found['account']}.blob.{suffix}"
        if "endpoint" not in found:
            raise BadConfig("Azure's connection string names neither an account nor a BlobEndpoint")
        found["endpoint"] = found["endpoint"].rstrip("/")
        return replace(self, **found)  # type: ignore[arg-type]  # fields by name, all of them texts

    def at(self, host: str, address: str) -> Self:
        """The same with endpoint and account of what a URI means.

        Args:
            host: behind the `@` of `abfs://CONTAINER@HOST/…`; may be empty.

        Raises:
            InvalidUri: no host of Azure's.
            AccessDenied: the credential is another account's.
            BadConfig: nobody names an account.
        """
        found = _HOST.fullmatch(host.lower())
        if host and found is None:
            raise InvalidUri("no host of Azure's blobs", address=address, expected="ACCOUNT.dfs.core.windows.net", got=ascii(host[:80]))
        account = found[1] if found else self.account or (self.nodes_account if self.endpoint is None else None)
        nodes = self.endpoint is None and account == self.nodes_account
        if self.account not in (None, account):
            raise AccessDenied("the credential is one for another Azure account", address=address, expected=account, got=self.account)
        usual = None if account is None else default_endpoint(account, *(() if found is None else (found[2],)))
        if self.account is None and found is not None and self.endpoint not in (None, usual):
            raise AccessDenied("the credential is one for another Azure endpoint", address=address, expected=usual, got=self.endpoint)
        endpoint = self.endpoint or (self.nodes_endpoint if nodes else None) or usual
        if endpoint is None or (self.account_key is not None and account is None):
            hint = "in the URI, `abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/…`, or beside the key (`AZURE_STORAGE_ACCOUNT_NAME`)"
            raise BadConfig("no Azure account is named", address=address, hint=hint)
        if self.signs_in and not str(endpoint).startswith("https:"):
            raise BadConfig("a principal or a token of Azure is sent to `https://` endpoints alone", address=address)
        return replace(self, account=account, endpoint=endpoint)


def _scheme_of(endpoint: str, what: str) -> str:
    try:
        return checked_endpoint(endpoint, what).scheme
    except BadConfig:
        raise BadConfig(f"{what} is no URL of scheme, host, port and path") from None


def is_blob_host(host: str) -> bool:
    """Whether an account's blobs are there, at Azure's own endpoints."""
    return _HOST.fullmatch(host) is not None and ".blob." in host


def default_endpoint(account: str, suffix: str = "core.windows.net") -> str:
    """Of an account's blobs."""
    return f"https://{account}.blob.{suffix}"


def _is_base64(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) > 0
    except (binascii.Error, ValueError):
        return False
