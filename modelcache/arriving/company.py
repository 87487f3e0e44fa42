"""The ranks of a group that want a model which isn't here: one of them brings it, and the others have it from there as it arrives."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modelcache.abc.ingest import Route
from modelcache.arriving.arrival import Arrival
from modelcache.arriving.checkpoint import ArrivingFolder
from modelcache.errors import BadCheckpoint, BadShard, GroupBroken, SourceChanged
from modelcache.fetch.begun import Begun
from modelcache.loader.brought import Bringing
from modelcache.loader.checkpoint import Checkpoint
from modelcache.loader.council import Council, Message
from modelcache.loader.group import Member
from modelcache.patience import Cancellation


class Company:
    """One rank among those that have a model from one of them. A context manager, within that of the arrival.

    All ranks ask for the same, in the same order: what one of them reads of small files and headers, the others are told.
    """

    def __init__(
        self, council: Council, member: Member, bringer: int, said: Mapping[str, Any], arrival: Arrival, cancel: Cancellation
    ) -> None:
        """
        Args:
            bringer: the rank whose process fetches it.
            said: by that one.
        """
        self._council = council
        self._bringer = bringer
        self._brings = member.rank == bringer
        self._version: str = said["version"]
        self._is_paged: bool = said["paged"]
        self._arrival = arrival
        self._cancel = cancel
        self._path: Path | None = None
        if self._brings:
            council.lead()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Who brings it may have ended for a reason that it tells: all end with that one."""
        if isinstance(error, GroupBroken) and not self._brings:
            told = self._council.last_word(self._bringer)
            if told is not None:
                raise told from error

    def bringing(self, extent_bytes: int, *, may_map: bool) -> Bringing:
        return Bringing(self._council, self._bringer, self._version, extent_bytes, self._is_paged, may_map)

    def verified(self, folder: ArrivingFolder, names: Collection[str]) -> Mapping[str, bytes]:
        """Small files, each verified. Raises as `ArrivingFolder.verified`, and GroupBroken."""
        if not self._brings:
            return self._council.hear(self._bringer, self._cancel).files
        found = {name: folder.verified(name) for name in names}
        self._council.tell(Message(files=found), self._cancel)
        return found

    def open_checkpoint(self, folder: ArrivingFolder, named: str | None = None) -> Checkpoint:
        """As of the folder. Raises as `ArrivingFolder.open_checkpoint`, in all ranks the same, and GroupBroken."""
        if self._brings:
            try:
                found = folder.open_checkpoint(named)
            except BadCheckpoint:
                self._council.tell(Message({"is_checkpoint": False}), self._cancel)
                raise
            self._council.tell(Message({"is_checkpoint": True}, folder.first), self._cancel)
            return found
        told = self._council.hear(self._bringer, self._cancel)
        if not told.fields["is_checkpoint"]:
            raise BadCheckpoint("the headers make no sense", address=str(folder.begun.listing.uri))
        folder.first.update(told.files)
        return folder.open_checkpoint(named)

    def finish(self) -> Path:
        """Wait until all of it is verified, published and compared with what the ranks were handed; the snapshot's directory.

        Raises:
            DigestMismatch: something else was handed out. SourceChanged: it isn't the version that the bringing rank has.
            GroupBroken. What `Arrival.finish` raises.
        """
        if self._path is not None:
            return self._path
        if self._brings:
            path = self._arrival.finish()
            self._council.tell(Message({"snapshot": str(self._arrival.digest)}), self._cancel)
        else:
            theirs = self._council.hear(self._bringer, self._cancel).fields["snapshot"]
            path = self._arrival.finish()
            if theirs != str(self._arrival.digest):
                raise SourceChanged(
                    "ranks of one group have different versions of a model",
                    address=self._arrival.address,
                    expected=theirs,
                    got=str(self._arrival.digest),
                )
        self._path = path
        return path


def gathered(
    arrival: Arrival, member: Member | None, *, verified_only: bool, held: ExitStack, cancel: Cancellation
) -> tuple[Begun | Path, Company | None]:
    """The fetch that brings a model, or the directory where it is; for a group, how its ranks have it. One of them brings it to all, if its
    process fetches all that isn't here. Else each waits until all is here: where another process fetches some of it, where one rank finds
    it here, or wants verified bytes alone.

    Args:
        member: this rank of it; None: there is no group.
        held: what the company lasts as long as.

    Raises:
        GroupBroken, BadShard: the group did not meet, or means different things. Cancelled. What `Arrival.later` raises.
    """
    found = arrival.later()
    if member is None or len(member.ranks) == 1:
        return found, None
    with ExitStack() as kept:
        council = kept.enter_context(Council.convened(member, arrival.address, cancel))
        said = council.all_say(_said(found, verified_only), cancel)
        bringers = [rank for rank, each in said.items() if each["brings"]]
        if isinstance(found, Begun) and bringers and all(each["arrives"] for each in said.values()):
            _expect_one(member, said)
            company = kept.enter_context(Company(council, member, bringers[0], said[bringers[0]], arrival, cancel))
            held.push(kept.pop_all())
            return found, company
    return arrival.published(), None


def _said(found: Begun | Path, verified_only: bool) -> Mapping[str, Any]:
    if verified_only or not isinstance(found, Begun):
        return {"arrives": False, "brings": False}
    brings = all(item.claimed or item.sha256 is not None for item in found.ingest.files)
    is_paged = found.fetch.route is Route.BUFFERED and all(item.place is not None for item in found.ingest.files)
    return {"arrives": True, "brings": brings, "version": found.listing.revision, "paged": is_paged}


def _expect_one(member: Member, said: Mapping[int, Mapping[str, Any]]) -> None:
    """Raises BadShard: they mean several versions."""
    first = member.ranks[0]
    for rank, each in said.items():
        if each["version"] != said[first]["version"]:
            message = f"rank {rank} of group `{member.group.name}` means another version of the model than rank {first}"
            raise BadShard(message, expected=said[first]["version"], got=each["version"])
