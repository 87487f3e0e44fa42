"""Arguments of fsspec's filesystems, by scheme, as the file and variables write them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from modelcache.config.kinds import Free, MapOf
from modelcache.config.scalars import SECRET
from modelcache.config.setting import Environ
from modelcache.errors import BadConfig

PREFIX = "MODELCACHE_FSSPEC_"
"""Before the scheme in capitals; the variable holds JSON."""
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


def _scheme(name: str) -> None:
    if not _SCHEME.fullmatch(name):
        raise BadConfig(f"not a scheme in lower case: {name[:40]!a}")


STORAGE = MapOf(Free(), "<scheme>", _scheme)
"""Scheme → arguments. All of them count as secret, for nobody here knows which are."""


def storage_of_variables(environ: Environ) -> dict[str, dict[str, Any]] | None:
    """By scheme, what the variables say; None if there is none. Raises BadConfig."""
    found = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or not text:
            continue
        scheme = name.removeprefix(PREFIX).lower()
        try:
            _scheme(scheme)
            found[scheme] = STORAGE.kind.of_text(text)
        except BadConfig as error:
            raise BadConfig(f"{name}: {error.message}", hint=error.hint) from None
    return found or None


AZURE = MapOf(SECRET, "<argument>")
"""Argument → value, of the filesystem of `az`, `abfs` and `abfss`."""
AZURE_VARIABLES: Mapping[str, Sequence[str]] = {
    "account_name": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"),
    "account_key": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_KEY"),
    "connection_string": ("AZURE_STORAGE_CONNECTION_STRING",),
    "sas_token": ("AZURE_STORAGE_SAS_TOKEN",),
    "client_id": ("AZURE_STORAGE_CLIENT_ID", "AZ_CLIENT_ID", "AZURE_CLIENT_ID"),
    "client_secret": ("AZURE_STORAGE_CLIENT_SECRET", "AZ_CLIENT_SECRET", "AZURE_CLIENT_SECRET"),
    "tenant_id": ("AZURE_STORAGE_TENANT_ID", "AZ_TENANT_ID", "AZURE_TENANT_ID"),
}
"""adlfs's own variables, then KServe's (`kserve_storage.py`), then those of Azure's command line and of azure-identity."""
AZURE_BESIDE = tuple(name for names in AZURE_VARIABLES.values() for name in names)[1:]
PRINCIPAL = ("client_id", "client_secret", "tenant_id")


def azure_of_variables(environ: Environ) -> dict[str, str] | None:
    """What Azure's variables say; None if they say nothing. A principal counts with all of its three parts: a client id alone is that of a
    managed identity, which azure-identity finds by itself."""
    told = {name: next((environ[each] for each in variables if environ.get(each)), "") for name, variables in AZURE_VARIABLES.items()}
    if not all(told[name] for name in PRINCIPAL):
        told |= dict.fromkeys(PRINCIPAL, "")
    return {name: value for name, value in told.items() if value} or None
