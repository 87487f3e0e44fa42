"""Files that several fetches of this process want at the same time: one brings each, the others wait for it."""

from __future__ import annotations

from modelcache.digest import Digest
from modelcache.fetch.fetch import Fetch
from modelcache.fetch.plan import Priority


class SharedFiles:
    """Who leads and who follows, by the identity of the bytes. Not thread-safe; the engine's lock guards it.

    Who follows lends its priority to who leads, for as long as it waits: a pod must not wait behind somebody's prewarming
    because that was first to ask for a file of both.
    """

    def __init__(self) -> None:
        self._leader: dict[str, tuple[Fetch, int]] = {}
        self._followers: dict[str, list[tuple[Fetch, int]]] = {}
        self._planning = 0
        self._published: dict[str, tuple[Fetch, Digest]] = {}

    def planning_begins(self) -> None:
        """Somebody looks now at what the store has, and will start a fetch for the rest."""
        self._planning += 1

    def planning_ends(self) -> None:
        self._planning -= 1
        self._forget_published()

    def _forget_published(self) -> None:
        if self._planning == 0:
            self._published = {identity: (fetch, digest) for identity, (fetch, digest) in self._published.items() if not fetch.ended}

    def published(self, fetch: Fetch, file: int) -> Digest | None:
        """What was published under this file's identity: by a fetch in progress, or since somebody who still plans has begun to."""
        _, digest = self._published.get(fetch.identity(file), (None, None))
        return digest

    def join(self, fetch: Fetch, file: int) -> tuple[Fetch, int] | None:
        """None: `fetch` is to bring this file itself, or to wait for another process. Else which file of which fetch it waits for
        (it may be its own). Who can bring a file goes before who waits for another process."""
        identity = fetch.identity(file)
        if identity == "":
            return None
        if identity not in self._leader:
            self._leader[identity] = (fetch, file)
            return None
        leader = self._leader[identity]
        if leader[1] in leader[0].awaited and fetch.incoming(file).claimed:
            self._give_way(identity, (fetch, file))
            return None
        self._followers.setdefault(identity, []).append((fetch, file))
        leader[0].rank.lend(fetch.rank.own)
        return leader

    def _give_way(self, identity: str, leader: tuple[Fetch, int]) -> None:
        """Who led until now, and who follows it, follow this one."""
        before, waiting = self._leader[identity], self._followers.get(identity, [])
        for follower, _ in waiting:
            before[0].rank.unlend(follower.rank.own)
        self._leader[identity], self._followers[identity] = leader, [before, *waiting]
        for follower, _ in self._followers[identity]:
            leader[0].rank.lend(follower.rank.own)
        before[0].follow(before[1])

    def completed(self, fetch: Fetch, file: int, digest: Digest) -> list[tuple[Fetch, int]]:
        """This file is published; who waits for it."""
        identity = fetch.identity(file)
        if identity != "":
            self._published[identity] = (fetch, digest)
        if self._leader.get(identity) != (fetch, file):
            return []
        del self._leader[identity]
        followers = self._followers.pop(identity, [])
        for follower, _ in followers:
            fetch.rank.unlend(follower.rank.own)
        return followers

    def hurried(self, fetch: Fetch, before: Priority) -> None:
        """The own priority of this fetch was `before`."""
        for identity, waiting in self._followers.items():
            for follower, _ in waiting:
                if follower is fetch:
                    self._leader[identity][0].rank.unlend(before)
                    self._leader[identity][0].rank.lend(fetch.rank.own)

    def left(self, fetch: Fetch) -> list[tuple[Fetch, int]]:
        """This fetch has ended: forget it; who leads now in its stead."""
        self._forget_published()
        for identity in list(self._followers):
            self._unfollow(identity, fetch)
        promoted = []
        for identity in [identity for identity, leader in self._leader.items() if leader[0] is fetch]:
            del self._leader[identity]
            waiting = self._followers.pop(identity, [])
            if waiting:
                self._leader[identity] = waiting[0]
                promoted.append(waiting[0])
            if waiting[1:]:
                self._followers[identity] = waiting[1:]
                for follower, _ in waiting[1:]:
                    waiting[0][0].rank.lend(follower.rank.own)
        return promoted

    def _unfollow(self, identity: str, fetch: Fetch) -> None:
        staying = []
        for follower, file in self._followers[identity]:
            if follower is fetch:
                self._leader[identity][0].rank.unlend(fetch.rank.own)
            else:
                staying.append((follower, file))
        if staying:
            self._followers[identity] = staying
        else:
            del self._followers[identity]
