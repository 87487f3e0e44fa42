"""Grants on disk: who proved what, until when; and the key under which credentials are made unrecognisable."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelcache.abc.grants import Grant, Holder
from modelcache.abc.snapshot import RefKey
from modelcache.digest import sha256
from modelcache.errors import DamagedRecord, ModelCacheError
from modelcache.store import durable, records
from modelcache.store.faults import guarded, unless_unwritable
from modelcache.store.keys import decode_key, encode_key
from modelcache.store.layout import half_digest, is_hex
from modelcache.store.parsed import Parsed, damaged_of
from modelcache.store.records import field
from modelcache.store.root import Root

KEY_BYTES = 32
"""As many as the hash has (RFC 2104 §3)."""
_PURPOSE = b"modelcache grant 1\n"


class LocalGrants:
    """`Grants` of a `LocalStore`: one file per grant, its name beginning with a digest of the namespace."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._layout = root.layout
        self._parsed = Parsed(self._parse)

    @property
    def address(self) -> str:
        return str(self._layout.grants)

    @guarded
    def mac(self, credential: bytes) -> str:
        return hmac.new(self._key(), _PURPOSE + credential, hashlib.sha256).hexdigest()

    def now_s(self) -> float:
        return self._root.clock()

    @guarded
    def put(self, grant: Grant) -> None:
        with self._root.lock.shared():
            records.replace(self._path(grant), encode_grant(grant))

    @guarded
    def of_holder(self, holder: Holder, uri: str) -> list[Grant]:
        found = [grant for grant in self.of_namespace(holder.namespace) if grant.holder == holder and grant.key.uri == uri]
        return sorted(found, key=lambda grant: -grant.created_at_s)

    @guarded
    def of_namespace(self, namespace: str) -> list[Grant]:
        now_s = self.now_s()
        found = [grant for _, grant in self._readable(half_digest(namespace)) if grant.holder.namespace == namespace]
        ahead = [grant for grant in found if grant.created_at_s > now_s]
        if ahead:  # else it would be in force again, for longer than it was given for, when the clock gets there
            with unless_unwritable(), self._root.lock.shared():
                for grant in ahead:
                    records.remove(self._path(grant))
        return [grant for grant in found if grant.in_force(now_s)]

    @guarded
    def revoke(self, holder: Holder, key: RefKey) -> int:
        paths = [path for path, grant in self._readable(half_digest(holder.namespace)) if (grant.holder, grant.key) == (holder, key)]
        if not paths:
            return 0
        with self._root.lock.shared():
            count = sum(records.remove(path) for path in paths)
            durable.fsync_directory(self._layout.grants)
        return count

    # -- for collect and verify -----------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Remove grants that are not in force. Under the exclusive store lock."""
        now_s = self.now_s()
        for path, grant in self._readable(""):
            if not grant.in_force(now_s):
                records.remove(path)

    def damaged(self) -> list[DamagedRecord]:
        """Why the grants that can't be read can't be."""
        return damaged_of(self._paths(""), self._parse)

    def discard_damaged(self, path: Path) -> None:
        """Remove a grant's file if it is still one that can't be read. Under the shared store lock."""
        if str(path) in {str(error.address) for error in self.damaged()}:
            records.remove(path)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _key(self) -> bytes:
        path = self._layout.node_key
        try:
            text = records.read(path)
        except FileNotFoundError:
            self._make_key()
            text = records.read(path)
        digits = text[:-1].decode("latin-1")
        if text[-1:] != b"\n" or not is_hex(digits, 2 * KEY_BYTES):
            raise DamagedRecord(
                "the node's key can't be read as one, so no grant can be",
                address=str(path),
                hint="remove it: a new one is made, and every caller has to prove its rights again",
            )
        return bytes.fromhex(digits)

    def _make_key(self) -> None:
        """The file appears whole, and once: of two processes that make it at once the first one's stays."""
        with self._root.lock.shared():
            temporary = self._layout.temporary(self._layout.root)
            durable.write_new(temporary, f"{secrets.token_hex(KEY_BYTES)}\n".encode(), sync=True)
            try:
                durable.link(temporary, self._layout.node_key)
            except FileExistsError:
                pass
            finally:
                records.remove(temporary)
            durable.fsync_directory(self._layout.root)

    def _path(self, grant: Grant) -> Path:
        who, what = grant.holder, grant.key
        rest = (who.service_account, who.credential, what.uri, what.origin, grant.revision, grant.manifest.hex)
        return self._layout.grant(f"{half_digest(who.namespace)}{half_digest(chr(0).join(rest))}")

    def _paths(self, start: str) -> list[Path]:
        try:
            names = records.names(self._layout.grants)
        except FileNotFoundError:  # a store that can't be written, made before there were grants
            return []
        return [self._layout.grant(name) for name in sorted(names) if name.startswith(start)]

    def _readable(self, start: str) -> Iterator[tuple[Path, Grant]]:
        paths = self._paths(start)
        self._parsed.forget_all_but({path.name for path in paths}, start)
        for path in paths:
            grant = self._parsed.of(path)
            if grant is not None:
                yield path, grant

    def _parse(self, path: Path) -> Grant:
        grant = decode_grant(records.read(path), str(path))
        if self._path(grant) != path:
            raise DamagedRecord("the grant is filed under another name than its own", address=str(path))
        return grant


def encode_grant(grant: Grant) -> bytes:
    """`docs/format.md`, Grants."""
    return records.encode(
        {
            "namespace": grant.holder.namespace,
            "service_account": grant.holder.service_account,
            "credential": grant.holder.credential,
            **encode_key(grant.key),
            "revision": grant.revision,
            "manifest": grant.manifest.hex,
            "blobs": [digest.hex for digest in grant.blobs],
            "created_at_s": float(grant.created_at_s),
            "expires_at_s": float(grant.expires_at_s),
        }
    )


def decode_grant(data: bytes, address: str) -> Grant:
    """Read `encode_grant`'s bytes back. Raises DamagedRecord."""
    record: Any = records.decode(data, address)
    try:
        grant = Grant(
            holder=Holder(field(record, "namespace", str), field(record, "service_account", str), field(record, "credential", str)),
            key=decode_key(record),
            revision=field(record, "revision", str),
            manifest=sha256(field(record, "manifest", str)),
            blobs=tuple(sha256(digits) for digits in field(record, "blobs", list)),
            created_at_s=field(record, "created_at_s", float),
            expires_at_s=field(record, "expires_at_s", float),
        )
        canonical = encode_grant(grant)
    except (ModelCacheError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedRecord(f"not a grant ({error})", address=address) from error
    if canonical != data:
        raise DamagedRecord("the grant is not in canonical form", address=address)
    return grant
