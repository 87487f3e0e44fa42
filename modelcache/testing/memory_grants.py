"""Grants in a list: the same promises as those on disk, for tests of what stands above them."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable

from modelcache.abc.grants import Grant, Holder
from modelcache.abc.snapshot import RefKey


class MemoryGrants:
    """`Grants` in memory."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._key = secrets.token_bytes(32)
        self._grants: list[Grant] = []

    def mac(self, credential: bytes) -> str:
        return hashlib.blake2b(credential, key=self._key, digest_size=32).hexdigest()

    def now_s(self) -> float:
        return self._clock()

    def put(self, grant: Grant) -> None:
        with self._lock:
            self._grants = [kept for kept in self._grants if _name(kept) != _name(grant)] + [grant]

    def of_holder(self, holder: Holder, uri: str) -> list[Grant]:
        found = [grant for grant in self.of_namespace(holder.namespace) if grant.holder == holder and grant.key.uri == uri]
        return sorted(found, key=lambda grant: -grant.created_at_s)

    def of_namespace(self, namespace: str) -> list[Grant]:
        now_s = self._clock()
        with self._lock:
            self._grants = [grant for grant in self._grants if grant.created_at_s <= now_s]
            return [grant for grant in self._grants if grant.holder.namespace == namespace and grant.in_force(now_s)]

    def revoke(self, holder: Holder, key: RefKey) -> int:
        with self._lock:
            before = len(self._grants)
            self._grants = [grant for grant in self._grants if (grant.holder, grant.key) != (holder, key)]
            return before - len(self._grants)


def _name(grant: Grant) -> tuple[object, ...]:
    return grant.holder, grant.key, grant.revision, grant.manifest
