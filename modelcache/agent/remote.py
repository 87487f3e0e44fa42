"""The node's agent in place of a `ModelCache`, for the command line: the same calls, the same results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from modelcache.abc.snapshot import Ref, Snapshot
from modelcache.abc.store import Evicted, Lease, SnapshotInfo, Usage, VerifyReport, clean, expect_own
from modelcache.agent.client import AgentClient, Shown
from modelcache.digest import digits_of
from modelcache.errors import AgentUnreachable, Cancelled, InvalidUri
from modelcache.fetch.flight import CANCELLED
from modelcache.fetch.progress import Phase, Progress
from modelcache.manifest import Manifest
from modelcache.naming import telling_digits
from modelcache.patience import Cancellation
from modelcache.prewarm import DEFAULT_JOBS, ManyProgress, PrewarmOutcome, PrewarmReport, each_once
from modelcache.refresh import Refresh
from modelcache.uri import parse_uri

GREETING_S = 5.0
"""An agent that says nothing for so long is none: its brief status takes milliseconds."""


class RemoteCache:
    """What an agent keeps, under the names of `ModelCache`'s calls. A context manager.

    Names and URIs are made whole here: a relative path means this process's directory. Each call raises what `ModelCache`'s would,
    and AgentUnreachable and AgentDraining.
    """

    def __init__(self, socket: Path) -> None:
        """Raises AgentUnreachable: nobody answers there."""
        self.socket = socket
        self.client = AgentClient(socket)
        try:
            self.greeting = self.client.status(brief=True, timeout_s=GREETING_S)
        except BaseException:
            self.client.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.client.close()

    @property
    def root(self) -> Path:
        """The directory of the agent's store."""
        return self.greeting.root

    def ensure(
        self,
        uri: str,
        *,
        refresh: Refresh = Refresh.AUTO,
        progress: Callable[[Progress], None] | None = None,
        cancel: Cancellation | None = None,
    ) -> Snapshot:
        return self.client.ensure(_whole(uri), refresh=refresh, progress=progress, cancel=cancel).snapshot

    def prewarm(
        self,
        uris: Sequence[str],
        *,
        jobs: int = DEFAULT_JOBS,
        refresh: Refresh = Refresh.AUTO,
        pin_for: str | None = None,
        progress: ManyProgress | None = None,
        cancel: Cancellation | None = None,
    ) -> PrewarmReport:
        outcomes, texts = each_once(map(_whole_if_one, uris))  # what is no URI isn't sent: not every text can be
        numbers = list(texts)
        looks: dict[int, Progress] = {}
        ended: dict[int, PrewarmOutcome] = {}
        started_s = time.monotonic()

        def look(at: int, seen: Progress) -> None:
            looks[numbers[at]] = seen
            if progress is not None:
                progress(numbers[at], seen)

        try:
            report = self.client.prewarm(
                [*texts.values()],
                jobs=jobs,
                refresh=refresh,
                pin_for=pin_for,
                progress=look,
                ended=lambda at, outcome: ended.update({numbers[at]: outcome}),
                cancel=cancel,
            )
            outcomes |= zip(numbers, report.outcomes, strict=True)
        except Cancelled:  # the agent told no more: what came until then
            outcomes |= {number: ended.get(number) or self._so_far(outcomes[number], looks.get(number)) for number in numbers}
        return PrewarmReport(tuple(outcomes[number] for number in sorted(outcomes)), time.monotonic() - started_s)

    def _so_far(self, outcome: PrewarmOutcome, seen: Progress | None) -> PrewarmOutcome:
        """Of one whose end wasn't told."""
        if seen is not None and seen.phase is Phase.DONE:
            info = self.find(outcome.uri)
            return replace(outcome, snapshot=Snapshot(info.digest, info.path), progress=seen)
        return replace(outcome, progress=seen, error=Cancelled(CANCELLED, address=outcome.uri))

    def list(self) -> Sequence[SnapshotInfo]:
        return self.client.list()

    def find(self, name: str) -> SnapshotInfo:
        return self._shown(name).info

    def manifest(self, name: str) -> Manifest:
        return self._shown(name).manifest

    def refs(self, name: str) -> Sequence[Ref]:
        return self._shown(name).refs

    def verified_at_s(self, name: str) -> float | None:
        return self._shown(name).verified_at_s

    def _shown(self, name: str) -> Shown:
        with telling_digits(name, self.list):
            return self.client.show(_named(name))

    def usage(self) -> Usage:
        usage = self.client.status().usage
        if usage is None:
            raise AgentUnreachable("the agent doesn't say where the room went", address=str(self.socket))
        return usage

    def verify(
        self, name: str | None = None, *, progress: Callable[[int, int], None] | None = None, cancel: Cancellation | None = None
    ) -> VerifyReport:
        with telling_digits(name or "", self.list):
            return self.client.verify(None if name is None else _named(name), progress=progress, cancel=cancel)

    def pin(self, name: str, *, holder: str = "user") -> Lease:
        expect_own(holder)  # no name at all would be the usual one to the agent
        with telling_digits(name, self.list):
            return self.client.pin(_named(name), holder=clean(holder))

    def unpin(self, name: str, *, holder: str | None = None) -> int:
        with telling_digits(name, self.list):
            return self.client.unpin(_named(name), holder=None if holder is None else clean(holder))

    def evict(self, name: str, *, dry_run: bool = False) -> Evicted:
        with telling_digits(name, self.list):
            return self.client.evict(_named(name), dry_run=dry_run)


def _whole(text: str) -> str:
    """A URI or path as it is understood anywhere; one that holds a secret can't be relative, and stays. Raises InvalidUri."""
    uri, secrets = parse_uri(text)
    return text if secrets else str(uri)


def _whole_if_one(text: str) -> str:
    try:
        return _whole(text)
    except InvalidUri:
        return text  # the agent tells, as this one's outcome


def _named(name: str) -> str:
    return name if digits_of(name) is not None else _whole(name)
