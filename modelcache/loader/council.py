"""What the ranks of a group say to each other about a model that one of them brings, from before they know what is in it until all know
how it ended."""

from __future__ import annotations

import json
import os
import select
import selectors
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from modelcache.errors import Cancelled, GroupBroken, ModelCacheError
from modelcache.errors.told import error_of
from modelcache.loader.group import Member
from modelcache.loader.meeting import Arrival, Terms, meet
from modelcache.patience import Cancellation, Condition, Deadline, begin, end_of

LOOK_S = 0.5
"""Longest sleep between two looks, for a thread that can be interrupted."""
BEAT_S = 5.0
"""How often the rank that others wait for says that it goes on, at least; four times in a group's timeout, if that is more often."""
LAST_WORD_S = 5.0
"""For which it is waited, of a rank whose load is ending: it only has to give back what it holds."""


READ_BYTES = 1 << 18
_LENGTH = struct.Struct("<Q")
_BEAT = _LENGTH.pack(0)
"""A message of no bytes: the sender goes on."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is said at once.

    Attributes:
        fields: of JSON.
        files: bytes by name.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def encoded(self) -> bytes:
        head = {"fields": self.fields, "sizes": {name: len(data) for name, data in self.files.items()}}
        return b"\n".join([json.dumps(head).encode(), b"".join(self.files.values())])

    @classmethod
    def decoded(cls, data: bytes) -> Message:
        head, _, rest = data.partition(b"\n")
        said, files, at = json.loads(head), {}, 0
        for name, size_bytes in said["sizes"].items():
            files[name] = rest[at : at + size_bytes]
            at += size_bytes
        return cls(said["fields"], files)


class Council:
    """One rank's links to all others. A context manager. Thread-safe.

    Who leads tells the others when its load ends with an error: they end with the same one.
    """

    def __init__(self, member: Member, links: Mapping[int, socket.socket]) -> None:
        """Takes the links over."""
        self._member = member
        self._links = links
        self._owner_pid = os.getpid()
        self._changed = Condition()  # with a lock that is reentrant, so that a signal handler may cancel
        self._sending = threading.Lock()
        self._said: defaultdict[int, deque[Message]] = defaultdict(deque)
        self._heard_at_s = dict.fromkeys(links, time.monotonic())
        self._gone: dict[int, None] = {}
        self._watching: list[Cancellation] = []
        self._leads = False
        self._beat_s = min(BEAT_S, member.group.timeout_s / 4)
        self._listener = threading.Thread(target=self._listen, name="load-council", daemon=True)

    @classmethod
    def convened(cls, member: Member, subject: str, cancel: Cancellation) -> Council:
        """Wait until all ranks of the group have come. Raises GroupBroken, BadShard (another subject), Cancelled."""
        group = member.group
        who = Arrival(f"{group.name}\0council", member.rank, member.ranks, subject, group.timeout_s)
        seat = meet(who, lambda: Terms(0, frozenset()), cancel)
        os.close(seat.segment_fd)
        return cls(member, seat.links)

    def __enter__(self) -> Self:
        """Raises GroupBroken: this machine has no more threads."""
        try:
            begin([self._listener], self._end)
        except RuntimeError as error:
            raise GroupBroken(f"rank {self._member.rank} can't listen to its group ({error})") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if os.getpid() != self._owner_pid:
            self._close_links()
            return  # it goes on in the process that began it: nothing is said in a fork
        if self._leads and isinstance(error, ModelCacheError) and not isinstance(error, GroupBroken | Cancelled):
            with suppress(GroupBroken):
                self.tell(Message({"failed": error.as_dict()}), Cancellation(), LAST_WORD_S)
        self._end()

    def _end(self) -> None:
        for link in self._links.values():
            with suppress(OSError):  # it may have ended already
                link.shutdown(socket.SHUT_RDWR)
        end_of(self._listener)
        self._close_links()

    def _close_links(self) -> None:
        for link in self._links.values():
            link.close()

    def lead(self) -> None:
        """The others wait for what this rank says: from now on they hear that it goes on."""
        self._leads = True

    # -- saying -----------------------------------------------------------------------------------------------------------

    def tell(self, message: Message, cancel: Cancellation, timeout_s: float | None = None) -> None:
        """Say something to all others; who is gone doesn't hear it. Raises GroupBroken: one stands still. Cancelled."""
        data = message.encoded()
        deadline = Deadline.after(self._member.group.timeout_s if timeout_s is None else timeout_s)
        with self._sending:
            for rank, link in self._links.items():
                if not _send(link, _LENGTH.pack(len(data)) + data, deadline, cancel):
                    raise GroupBroken(f"rank {rank} of the group stands still")

    def all_say(self, fields: Mapping[str, Any], cancel: Cancellation) -> dict[int, Mapping[str, Any]]:
        """What each rank says, by rank; every one says something. Raises as `hear`."""
        self.tell(Message(fields), cancel)
        said = {self._member.rank: fields, **{rank: self.hear(rank, cancel).fields for rank in self._links}}
        return {rank: said[rank] for rank in self._member.ranks}

    # -- hearing ----------------------------------------------------------------------------------------------------------

    def hear(self, rank: int, cancel: Cancellation) -> Message:
        """The next that a rank says.

        Raises:
            GroupBroken: it is gone, or stands still. Cancelled.
            What its load ended with.
        """
        began_s = time.monotonic()
        with cancel.on_cancel(self._wake), self._changed:
            while not self._said[rank]:
                cancel.check()
                if rank in self._gone:
                    raise _ended(rank)
                left_s = max(began_s, self._heard_at_s[rank]) + self._member.group.timeout_s - time.monotonic()
                if left_s <= 0:
                    raise GroupBroken(f"rank {rank} of the group stands still: it said nothing within {self._member.group.timeout_s:g} s")
                self._changed.wait(min(left_s, LOOK_S))
            message = self._said[rank].popleft()
        if (failed := message.fields.get("failed")) is not None:
            raise error_of(failed) or GroupBroken(f"rank {rank} of the group failed: {failed['message']}")
        return message

    def last_word(self, rank: int) -> ModelCacheError | None:
        """What ended the load of this rank, which leads, and whose end is near or was seen; None: it doesn't say, or stands still."""
        deadline = Deadline.after(LAST_WORD_S)
        with self._changed:
            while True:
                while self._said[rank]:
                    if (failed := self._said[rank].popleft().fields.get("failed")) is not None:
                        return error_of(failed)
                is_silent = time.monotonic() - self._heard_at_s[rank] > 2 * self._beat_s
                if rank in self._gone or is_silent or deadline.passed:
                    return None
                self._changed.wait(min(deadline.remaining_s(), LOOK_S))

    @contextmanager
    def watching(self, cancel: Cancellation) -> Iterator[Cancellation]:
        """A cancellation that is asked for when `cancel` is, and when a rank is gone. Raises GroupBroken: one is."""
        own = Cancellation()
        with cancel.on_cancel(own.cancel):
            with self._changed:
                self._watching.append(own)
                if self._gone:
                    own.cancel()
            try:
                yield own
            except Cancelled:
                cancel.check()
                with self._changed:
                    gone = next(iter(self._gone), None)
                if gone is None:
                    raise
                raise _ended(gone) from None
            finally:
                with self._changed:
                    self._watching.remove(own)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _listen(self) -> None:
        next_beat_s = time.monotonic()
        heard: defaultdict[int, bytearray] = defaultdict(bytearray)
        with closing(selectors.DefaultSelector()) as links:
            for rank, link in self._links.items():
                links.register(link, selectors.EVENT_READ, rank)
            while links.get_map():
                for key, _ in links.select(self._beat_s):
                    if not self._read(key.data, heard[key.data]):
                        links.unregister(key.fileobj)
                if self._leads and time.monotonic() >= next_beat_s:
                    next_beat_s = time.monotonic() + self._beat_s
                    self._beat()

    def _read(self, rank: int, heard: bytearray) -> bool:
        """Hear what a rank said; False: its link has ended."""
        try:
            data = self._links[rank].recv(READ_BYTES)
        except OSError:
            data = b""
        heard += data
        with self._changed:
            self._heard_at_s[rank] = time.monotonic()
            self._said[rank].extend(_messages(heard))
            if not data:
                self._gone[rank] = None
                for own in self._watching:
                    own.cancel()
            self._changed.notify_all()
        return bool(data)

    def _beat(self) -> None:
        """Who doesn't listen just now needs none, nor who hears a message come."""
        if self._sending.acquire(blocking=False):
            try:
                for link in self._links.values():
                    with suppress(OSError):
                        link.send(_BEAT, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            finally:
                self._sending.release()


def _messages(heard: bytearray) -> Iterator[Message]:
    """Those that came whole; they are taken out."""
    while len(heard) >= _LENGTH.size:
        end = _LENGTH.size + _LENGTH.unpack_from(heard)[0]
        if len(heard) < end:
            return
        if end > _LENGTH.size:
            yield Message.decoded(bytes(heard[_LENGTH.size : end]))
        del heard[:end]


def _send(link: socket.socket, data: bytes, deadline: Deadline, cancel: Cancellation) -> bool:
    """Whether it went out in time, or nobody is there to hear it. Raises Cancelled."""
    left = memoryview(data)
    while left:
        try:
            left = left[link.send(left, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            cancel.check()
            if deadline.passed:
                return False
            ready = select.poll()
            ready.register(link, select.POLLOUT)
            ready.poll(1000 * min(deadline.remaining_s(), LOOK_S))
        except OSError:  # it is gone: its link tells
            return True
    return True


def _ended(rank: int) -> GroupBroken:
    return GroupBroken(f"rank {rank} of the group ended before its load did")
