"""What a grant is: the remembered proof that a credential could read every object of one version of a ref."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from modelcache.abc.snapshot import RefKey
from modelcache.digest import Digest


class Isolation(StrEnum):
    """What callers of different namespaces share."""

    NONE = "none"
    """Bytes: each content is on the disk once."""
    NAMESPACE = "namespace"
    """Nothing: each namespace has inodes of its own, which its own fetches brought."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What callers of a shared store are believed. Defaults live in `modelcache.config`.

    Attributes:
        grant_ttl_s: how long a proof counts.
        origins: origins whose stated sha256 may save a fetch once the caller has proved that it can read the object there.
            Each as `scheme://host:port[/path]`; one with a CA of its own is never meant.
        proof_requests: one-byte reads in flight for one proof.
        refused_networks: CIDR blocks that no caller's URI, name or redirect may lead to.
        isolation: what callers of different namespaces share.
    """

    grant_ttl_s: float
    origins: tuple[str, ...]
    proof_requests: int
    refused_networks: tuple[str, ...] = ()
    isolation: Isolation = Isolation.NONE


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a grant.

    Attributes:
        credential: hex HMAC-SHA256 of the credential under the node's key (`Grants.mac`).
    """

    namespace: str
    service_account: str
    credential: str


@dataclass(frozen=True, slots=True)
class Grant:
    """A proof, remembered.

    Attributes:
        key: the ref; its origin is the one that the holder's own source spoke to.
        revision, manifest: the version of the ref that was proved.
        blobs: the contents of its files, each once, sorted; empty files have none.
        created_at_s, expires_at_s: Unix times between which it is in force.
    """

    holder: Holder
    key: RefKey
    revision: str
    manifest: Digest
    blobs: tuple[Digest, ...]
    created_at_s: float
    expires_at_s: float

    def in_force(self, now_s: float) -> bool:
        """A grant of the future (the clock was set back) is none: nobody knows how old it is."""
        return self.created_at_s <= now_s < self.expires_at_s


class Grants(Protocol):
    """The grants of one store. Safe for many threads and processes. One that can't be read is none."""

    def mac(self, credential: bytes) -> str:
        """What is kept of a credential: hex HMAC-SHA256 under a key that this store made for itself.

        Raises:
            DamagedRecord: the key can't be read as one.
        """
        ...

    def now_s(self) -> float:
        """Unix time by the clock that grants are judged by."""
        ...

    def put(self, grant: Grant) -> None:
        """Remember it, durably; replaces one of the same holder, ref and version."""
        ...

    def of_holder(self, holder: Holder, uri: str) -> Sequence[Grant]:
        """Grants in force on the versions of a URI, newest first."""
        ...

    def of_namespace(self, namespace: str) -> Sequence[Grant]:
        """Grants in force, of whatever holder in the namespace."""
        ...

    def revoke(self, holder: Holder, key: RefKey) -> int:
        """End the holder's grants on every version of a ref; how many there were."""
        ...
