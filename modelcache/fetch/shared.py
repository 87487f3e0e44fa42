"""Files that several fetches of this process want at the same time: one brings each, the others wait for it."""

from __future__ import annotations

from modelcache.fetch.fetch import Fetch


class SharedFiles:
    """Who leads and who follows, by the identity of the bytes. Not thread-safe; the engine's lock guards it."""

    def __init__(self) -> None:
        self._leader: dict[str, tuple[Fetch, int]] = {}
        self._followers: dict[str, list[tuple[Fetch, int]]] = {}

    def join(self, fetch: Fetch, file: int) -> bool:
        """Whether `fetch` is to bring this file itself; False: it follows another, or another file of its own."""
        identity = fetch.identity(file)
        if identity == "":
            return True
        if identity not in self._leader:
            self._leader[identity] = (fetch, file)
            return True
        self._followers.setdefault(identity, []).append((fetch, file))
        return False

    def completed(self, fetch: Fetch, file: int) -> list[tuple[Fetch, int]]:
        """This file is published; who waits for it."""
        identity = fetch.identity(file)
        if self._leader.get(identity) != (fetch, file):
            return []
        del self._leader[identity]
        return self._followers.pop(identity, [])

    def left(self, fetch: Fetch) -> list[tuple[Fetch, int]]:
        """This fetch has ended: forget it; who leads now in its stead."""
        for identity in list(self._followers):
            self._followers[identity] = [item for item in self._followers[identity] if item[0] is not fetch]
        promoted = []
        for identity in [identity for identity, leader in self._leader.items() if leader[0] is fetch]:
            del self._leader[identity]
            waiting = self._followers.pop(identity, [])
            if waiting:
                self._leader[identity] = waiting[0]
                promoted.append(waiting[0])
            if waiting[1:]:
                self._followers[identity] = waiting[1:]
        return promoted
