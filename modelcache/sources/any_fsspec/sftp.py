"""SFTP's host keys: fsspec believes whatever a server shows. Here the server has to be one that is known, before it sees a password."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelcache.errors import BadConfig, ModelCacheError, OriginUntrusted

SYSTEM_KEYS = Path("/etc/ssh/ssh_known_hosts")
"""sshd(8), FILES; beside it the user's own `~/.ssh/known_hosts`."""
Filesystem = Any


def verifying(kind: Filesystem, arguments: Mapping[str, Any], address: str) -> tuple[Filesystem, dict[str, Any]]:
    """The class to use for a class of fsspec's, and its arguments.

    Args:
        arguments: with `host_key_policy`, somebody decided about keys that nobody knows; `known_hosts` names a file of known ones.
    """
    if kind.__module__ != "fsspec.implementations.sftp" or "host_key_policy" in arguments:
        return kind, dict(arguments)
    kept = dict(arguments)
    known_hosts = kept.pop("known_hosts", None)

    class Verifying(kind):  # type: ignore[misc]  # fsspec has no types
        """Connects to servers alone whose key is known."""

        def _connect(self) -> None:
            self.client = _connected(self.host, self.ssh_kwargs, known_hosts, address)
            self.ftp = self.client.open_sftp()

    return Verifying, kept


def _connected(host: str, arguments: Mapping[str, Any], known_hosts: str | None, address: str) -> Any:
    """An SSH client. Raises OriginUntrusted: the server's key is not known, or another than it was; what paramiko raises."""
    import paramiko  # type: ignore[import-not-found,import-untyped,unused-ignore]

    class Refuse(paramiko.MissingHostKeyPolicy):  # type: ignore[misc,unused-ignore]
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            raise _untrusted("the server's host key is not known", address, known_hosts)

    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(Refuse())
    _load(client, known_hosts)
    refusal: ModelCacheError
    try:
        client.connect(host, **arguments)
    except paramiko.BadHostKeyException:
        refusal = _untrusted("the server's host key is another than the known one", address, known_hosts)
    except BaseException:
        client.close()
        raise
    else:
        return client
    client.close()
    raise refusal


def _load(client: Any, known_hosts: str | None) -> None:
    try:
        if known_hosts is not None:
            client.load_system_host_keys(known_hosts)
            return
        client.load_system_host_keys()
        if SYSTEM_KEYS.is_file():
            client.load_system_host_keys(str(SYSTEM_KEYS))
    except OSError as error:
        raise BadConfig(f"the known hosts can't be read ({error.strerror})", address=known_hosts or str(SYSTEM_KEYS)) from None


def _untrusted(why: str, address: str, known_hosts: str | None) -> OriginUntrusted:
    place, scheme = known_hosts or "~/.ssh/known_hosts", address.partition(":")[0]
    hint = f"`ssh-keyscan` prints it for `{place}`; or say what is believed: `host_key_policy` in [fsspec.storage.{scheme}]"
    return OriginUntrusted(why, address=address, hint=hint)
