"""How the ranks of a group find each other on a node, and get a link to each other and the memory that they share.

The first rank listens at a name in the kernel's abstract socket namespace, which goes with the process and leaves no file. Whoever comes
must be of the same user (SO_PEERCRED, both ways), the same group, and about to read the same. The first rank then hands every one a
socket to each other one and the memory, by SCM_RIGHTS: nobody else can ask for them, and from there all are equal.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import select
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from modelcache.errors import BadShard, GroupBroken
from modelcache.loader.segment import create_segment
from modelcache.patience import Cancellation, Deadline

VERSION = 2
RETRY_S = 0.02
"""Between two looks whether the first rank is there."""
PACKET_BYTES = 128 << 10
"""Of a packet, at most: below what a socket takes at once (`wmem_default`, 208 KiB)."""
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Arrival:
    """Who comes to a meeting.

    Attributes:
        group: its name.
        ranks: all that have to come, in order; the first one leads.
        reads: what the group is about to read, as a digest.
        timeout_s: how long is waited for the others.
    """

    group: str
    rank: int
    ranks: tuple[int, ...]
    reads: str
    timeout_s: float

    @property
    def said(self) -> dict[str, Any]:
        return {"version": VERSION, "rank": self.rank, "ranks": list(self.ranks), "reads": self.reads}

    @property
    def address(self) -> str:
        """In the abstract namespace (unix(7)): of one user, and as long as it may be whatever the name."""
        return f"\0modelcache-{os.geteuid()}-{hashlib.sha256(self.group.encode()).hexdigest()[:32]}"


@dataclass(frozen=True, slots=True)
class Terms:
    """What the first rank settles for all.

    Attributes:
        slots: of the memory; none, where nothing is to be shared.
        skipped: numbers of extents that nobody shares: each rank has their pages in memory already.
    """

    slots: int
    skipped: frozenset[int]


@dataclass(frozen=True, slots=True)
class Seat:
    """What a rank has after the meeting, to be closed by it.

    Attributes:
        links: a connected socket to each other rank.
        segment_fd: the shared memory.
        skipped: as settled.
    """

    links: Mapping[int, socket.socket]
    segment_fd: int
    skipped: frozenset[int]


def meet(who: Arrival, settle: Callable[[], Terms], cancel: Cancellation) -> Seat:
    """Wait until all ranks are here.

    Args:
        settle: asked by the first rank when all have come.

    Raises:
        GroupBroken: somebody did not come in time, left, or another user has the name.
        BadShard: ranks that are about to read different things, or not for the same ranks.
        MemoryError. Cancelled.
    """
    deadline = Deadline.after(who.timeout_s)
    return _lead(who, settle, deadline, cancel) if who.rank == who.ranks[0] else _join(who, deadline, cancel)


# -- the first rank ---------------------------------------------------------------------------------------------------


def _lead(who: Arrival, settle: Callable[[], Terms], deadline: Deadline, cancel: Cancellation) -> Seat:
    with ExitStack() as ends:
        callers: dict[int, socket.socket] = {}
        ends.callback(_close_all, callers)
        bell, cord = (ends.enter_context(each) for each in socket.socketpair())
        with _door(who, deadline, cancel) as door, cancel.on_cancel(partial(_shut, cord)):
            try:
                while len(callers) < len(who.ranks) - 1:
                    rank, caller = _receive(who, partial(_accept, door, bell, deadline), callers, deadline)
                    callers[rank] = caller
            except OSError:  # the deadline, or the cancellation
                cancel.check()
                missing = ", ".join(str(rank) for rank in who.ranks[1:] if rank not in callers)
                error = GroupBroken(f"not all ranks came to group `{who.group}` within {who.timeout_s:g} s; missing: {missing}")
                _refuse(callers.values(), error)
                raise error from None
            except BadShard as error:
                _refuse(callers.values(), error)
                raise
        return _seat_all(who, callers, settle())


def _door(who: Arrival, deadline: Deadline, cancel: Cancellation) -> socket.socket:
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        while True:
            try:
                door.bind(who.address)
                break
            except OSError as error:  # a predecessor that is still ending
                if deadline.passed:
                    message = f"rank {who.rank} of group `{who.group}` can't open it ({error.strerror})"
                    raise GroupBroken(message, hint="give every job on a node a name of its own") from None
            cancel.wait(RETRY_S)
        door.listen(len(who.ranks))
    except BaseException:
        door.close()
        raise
    return door


def _accept(door: socket.socket, bell: socket.socket, deadline: Deadline) -> socket.socket:
    """Whoever comes next. Raises TimeoutError: nobody, or the bell was rung (a listening socket that is shut down wakes nobody)."""
    waiting = select.poll()
    waiting.register(door, select.POLLIN)
    waiting.register(bell, select.POLLIN)
    ready = [fd for fd, _ in waiting.poll(1000 * deadline.remaining_s())]
    if not ready or bell.fileno() in ready:
        raise TimeoutError
    return door.accept()[0]


def _receive(
    who: Arrival, accept: Callable[[], socket.socket], callers: Mapping[int, socket.socket], deadline: Deadline
) -> tuple[int, socket.socket]:
    """The next rank that comes. Raises OSError: none in time. BadShard: it wants something else."""
    while True:
        caller = accept()
        try:
            caller.settimeout(max(deadline.remaining_s(), 0.001))
            said = json.loads(caller.recv(PACKET_BYTES) or b"null") if _uid_of(caller) == os.geteuid() else None
            if isinstance(said, dict):
                rank = _checked(who, said, callers)
                if rank in callers:
                    callers[rank].close()
                return rank, caller
        except BadShard as error:
            _refuse([caller], error)
            caller.close()
            raise
        except (ValueError, KeyError, TypeError):
            pass  # no rank of ours
        except BaseException:
            caller.close()
            raise
        caller.close()


def _checked(who: Arrival, said: Mapping[str, Any], callers: Mapping[int, socket.socket]) -> int:
    """The rank of who says so. Raises BadShard: it doesn't fit."""
    for name, what in (("version", "speaks another version"), ("ranks", "expects other ranks"), ("reads", "reads something else")):
        if said[name] != who.said[name]:
            message = f"rank {said['rank']} of group `{who.group}` {what} than rank {who.rank}"
            raise BadShard(message, expected=str(who.said[name]), got=str(said[name]))
    rank = int(said["rank"])
    if rank not in who.ranks[1:] or (rank in callers and not _has_left(callers[rank])):
        raise BadShard(f"two processes came as rank {rank} to group `{who.group}`", got=str(rank))
    return rank


def _has_left(caller: socket.socket) -> bool:
    """Whether who came first is gone: then this is the one that was started in its place."""
    try:
        return caller.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _seat_all(who: Arrival, callers: Mapping[int, socket.socket], terms: Terms) -> Seat:
    """Hand out links and memory."""
    message = json.dumps({"skipped": f"{sum(1 << number for number in terms.skipped):x}"}).encode()
    with ExitStack() as kept, ExitStack() as handed:
        links: dict[int, dict[int, socket.socket]] = {rank: {} for rank in who.ranks}
        for one, other in itertools.combinations(who.ranks, 2):
            for end, rank, to in zip(_pair(who), (one, other), (other, one), strict=True):
                links[rank][to] = (kept if rank == who.rank else handed).enter_context(end)
        fd = create_segment(terms.slots)
        kept.callback(os.close, fd)
        for rank, caller in callers.items():
            fds = [fd, *(links[rank][other].fileno() for other in sorted(links[rank]))]
            try:
                socket.send_fds(caller, [message], fds)
            except OSError as error:
                raise GroupBroken(f"rank {rank} left group `{who.group}` ({error.strerror})") from None
        kept.pop_all()
        return Seat(links[who.rank], fd, terms.skipped)


def _pair(who: Arrival) -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair()
    except OSError as error:
        raise GroupBroken(f"rank {who.rank} of group `{who.group}` can't link the others ({error.strerror})") from None


def _refuse(callers: Iterable[socket.socket], error: BadShard | GroupBroken) -> None:
    message = json.dumps({"refused": error.as_dict()}).encode()
    for caller in callers:
        with suppress(OSError):  # who is gone needs no answer
            caller.send(message)


# -- the others -------------------------------------------------------------------------------------------------------


def _join(who: Arrival, deadline: Deadline, cancel: Cancellation) -> Seat:
    with _connected(who, deadline, cancel) as link, cancel.on_cancel(partial(_shut, link)):
        if (uid := _uid_of(link)) != os.geteuid():
            raise GroupBroken(f"another user has the name of group `{who.group}`", expected=f"uid {os.geteuid()}", got=f"uid {uid}")
        link.settimeout(max(deadline.remaining_s(), 0.001))
        try:
            link.send(json.dumps(who.said).encode())
            message, fds, _, _ = socket.recv_fds(link, PACKET_BYTES, len(who.ranks))
        except TimeoutError:
            raise GroupBroken(f"group `{who.group}` was not complete within {who.timeout_s:g} s") from None
        except OSError:
            message, fds = b"", []
        if message:  # what was answered counts, though who answered may have gone meanwhile, which cancels this wait
            return _seated(who, json.loads(message), list(fds))
        cancel.check()
        raise GroupBroken(f"rank {who.ranks[0]} left group `{who.group}` before it was complete")


def _seated(who: Arrival, answer: Mapping[str, Any], fds: Sequence[int]) -> Seat:
    if (refused := answer.get("refused")) is not None:
        kind = BadShard if refused["code"] == BadShard.code else GroupBroken
        raise kind(refused["message"], expected=refused.get("expected"), got=refused.get("got"))
    others = [rank for rank in who.ranks if rank != who.rank]
    if len(fds) != len(others) + 1:  # the limit of open files
        for fd in fds:
            os.close(fd)
        raise GroupBroken(f"rank {who.rank} of group `{who.group}` did not get its links", expected=str(len(others) + 1), got=str(len(fds)))
    links = {rank: socket.socket(fileno=fd) for rank, fd in zip(others, fds[1:], strict=True)}
    skipped = int(answer["skipped"], 16)
    return Seat(links, fds[0], frozenset(number for number in range(skipped.bit_length()) if skipped >> number & 1))


def _connected(who: Arrival, deadline: Deadline, cancel: Cancellation) -> socket.socket:
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            link.connect(who.address)
            return link
        except OSError as error:
            link.close()
            if deadline.passed:
                message = f"rank {who.ranks[0]} did not come to group `{who.group}` within {who.timeout_s:g} s"
                raise GroupBroken(message, got=error.strerror) from None
        except BaseException:
            link.close()
            raise
        cancel.wait(RETRY_S)


def _uid_of(link: socket.socket) -> int:
    """Of the process at the other end (unix(7), SO_PEERCRED)."""
    data = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


def _close_all(links: Mapping[int, socket.socket]) -> None:
    for link in links.values():
        link.close()


def _shut(link: socket.socket) -> None:
    with suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
