"""Many models ahead of time: looked up together, checked for room together, fetched a few at a time, each outcome told."""

from __future__ import annotations

import contextvars
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from modelcache.abc.snapshot import Ref, Snapshot
from modelcache.abc.source import Listing
from modelcache.abc.store import Store, Usage, expect_own
from modelcache.errors import BadConfig, Cancelled, ModelCacheError, NoSpace, NotCached, Unavailable
from modelcache.fetch.progress import Progress
from modelcache.patience import Cancellation
from modelcache.permission import claims, fetched_before
from modelcache.refresh import Refresh
from modelcache.units import format_bytes
from modelcache.uri import parse_uri, redact_url

T = TypeVar("T")
DEFAULT_JOBS = 4
"""Models in progress at a time. The engine shares its requests among them; more help where models are of few small files."""
MAX_JOBS = 64
PIN_TRIES = 3
"""A model that is evicted between its arrival and its pin is brought in again this often in all."""

ManyProgress = Callable[[int, Progress], None]
"""`progress(number, look)`: of the URI of this number in the report's order. Called from several threads."""
Ended = Callable[[int, "PrewarmOutcome"], None]
"""`ended(number, outcome)`: the same of what came of it, as soon as that is known."""
Lookup = tuple[Listing, Ref | None]
Ask = Callable[[str, Cancellation], Lookup | None]
"""What the origin has under a URI just now and what it was before; None: it is here and needs no asking."""
Look = Callable[[Progress], None]
Bring = Callable[[str, Look, Cancellation], Snapshot]


@dataclass(frozen=True, slots=True)
class PrewarmOutcome:
    """What came of one URI: a snapshot with the last word of its progress, or an error.

    Attributes:
        uri: canonical; of a text that is no URI, that text without what could be a secret.
    """

    uri: str
    snapshot: Snapshot | None = None
    progress: Progress | None = None
    error: ModelCacheError | None = None


@dataclass(frozen=True, slots=True)
class PrewarmReport:
    """What came of all of them, in the order asked for, each URI once."""

    outcomes: tuple[PrewarmOutcome, ...]
    elapsed_s: float

    @property
    def failed(self) -> tuple[PrewarmOutcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.error is not None)

    @property
    def cancelled(self) -> bool:
        return any(isinstance(outcome.error, Cancelled) for outcome in self.outcomes)

    @property
    def fetched_bytes(self) -> int:
        return sum(outcome.progress.bytes_fetched for outcome in self.outcomes if outcome.progress is not None)

    @property
    def reused_bytes(self) -> int:
        return sum(outcome.progress.bytes_reused for outcome in self.outcomes if outcome.progress is not None)


@dataclass(frozen=True, slots=True)
class Asking:
    """How models are looked up, brought in and kept.

    Attributes:
        pin_for: in whose name each is pinned once it is here; None: not at all.
    """

    ask: Ask
    bring: Bring
    jobs: int
    pin_for: str | None


class Prewarming(ABC):
    """The part of `ModelCache` that has many models here ahead of time."""

    _store: Store

    @abstractmethod
    def _look_up(self, uri: str, refresh: Refresh, cancel: Cancellation) -> Lookup | None:
        """`Ask`."""

    @abstractmethod
    def _bring_ahead(self, uri: str, refresh: Refresh, look: Look, cancel: Cancellation) -> Snapshot:
        """`Bring`."""

    def prewarm(
        self,
        uris: Sequence[str],
        *,
        jobs: int = DEFAULT_JOBS,
        refresh: Refresh = Refresh.AUTO,
        pin_for: str | None = None,
        progress: ManyProgress | None = None,
        ended: Ended | None = None,
        cancel: Cancellation | None = None,
    ) -> PrewarmReport:
        """Have these models here before anybody waits for them: those who wait go first. One that fails doesn't stop the others, and
        the same call goes on where it was broken off.

        Args:
            jobs: models in progress at a time.
            pin_for: in whose name each is pinned once it is here.
            ended: called with what came of each as soon as that is known, from several threads.
            cancel: those that are not here yet get `Cancelled` for their outcome.

        Raises:
            NoSpace: all that is missing doesn't fit; nothing was fetched.
            BadConfig, StoreError.
        """
        refresh = Refresh(refresh)
        asking = Asking(
            ask=lambda uri, cancel: self._look_up(uri, refresh, cancel),
            bring=lambda uri, look, cancel: self._bring_ahead(uri, refresh, look, cancel),
            jobs=jobs,
            pin_for=pin_for,
        )
        wanted = [uris] if isinstance(uris, str) else uris  # a text is a sequence, too: of letters, and `/` is a place
        return Prewarm(self._store, asking, cancel or Cancellation(), progress, ended).run(wanted)


class Prewarm:
    """One run over many URIs."""

    def __init__(
        self,
        store: Store,
        asking: Asking,
        cancel: Cancellation,
        progress: ManyProgress | None = None,
        ended: Ended | None = None,
    ) -> None:
        if not 1 <= asking.jobs <= MAX_JOBS:
            raise BadConfig(f"{asking.jobs} jobs are not from 1 to {MAX_JOBS}", got=str(asking.jobs))
        if asking.pin_for is not None:
            expect_own(asking.pin_for)
        self._store = store
        self._asking = asking
        self._cancel = cancel
        self._progress = progress or (lambda number, look: None)
        self._ended = ended or (lambda number, outcome: None)

    def run(self, uris: Iterable[str]) -> PrewarmReport:
        """Bring all of them in. One that fails doesn't stop the others.

        Raises:
            NoSpace: what is missing of all that could be looked up doesn't fit, even if all that may go went; nothing was fetched.
        """
        started_s = time.monotonic()
        outcomes, texts = each_once(uris)
        for number in outcomes.keys() - texts.keys():
            self._ended(number, outcomes[number])
        with ThreadPoolExecutor(self._asking.jobs, "prewarm") as pool:
            try:
                looked = dict(zip(texts, pool.map(_for_caller(self._look), texts, texts.values()), strict=True))
                outcomes |= {number: replace(outcomes[number], error=error) for number, (_, error) in looked.items()}
                self._expect_room([missing for missing, _ in looked.values()])
                todo = {number: texts[number] for number, (_, error) in looked.items() if error is None}
                outcomes |= dict(zip(todo, pool.map(_for_caller(self._bring), todo, todo.values()), strict=True))
            except BaseException:
                self._cancel.cancel()  # what is in progress ends before the pool does
                raise
        return PrewarmReport(tuple(outcomes[number] for number in sorted(outcomes)), time.monotonic() - started_s)

    def _look(self, number: int, text: str) -> tuple[dict[str, int], ModelCacheError | None]:
        missing, error = self._missing_of(text)
        if error is not None:
            self._ended(number, PrewarmOutcome(str(parse_uri(text)[0]), error=error))
        return missing, error

    def _missing_of(self, text: str) -> tuple[dict[str, int], ModelCacheError | None]:
        """Identity and size of what a URI lacks, or why nobody can know. Where there is an older version the bringing decides."""
        try:
            self._cancel.check()
            asked = self._asking.ask(text, self._cancel)
        except Unavailable as error:
            return {}, None if self._has_version(text) else error
        except ModelCacheError as error:
            return {}, error
        return {} if asked is None else _missing(self._store, *asked), None

    def _has_version(self, text: str) -> bool:
        return bool(self._store.refs(str(parse_uri(text)[0])))

    def _expect_room(self, missing: Iterable[Mapping[str, int]]) -> None:
        needed_bytes = sum({identity: size_bytes for one in missing for identity, size_bytes in one.items()}.values())
        if needed_bytes == 0:
            return
        usage = self._store.usage()
        freeable_bytes = usage.evictable_bytes + _begun_bytes(usage)
        if needed_bytes > usage.available_bytes + freeable_bytes:
            raise NoSpace(
                f"what is missing of these models takes {format_bytes(needed_bytes)}; {format_bytes(usage.available_bytes)} can be booked "
                f"and {format_bytes(freeable_bytes)} freed",
                needed_bytes=needed_bytes,
                available_bytes=usage.available_bytes,
                evictable_bytes=freeable_bytes,
                held_bytes=usage.leased_bytes,
            )

    def _bring(self, number: int, text: str) -> PrewarmOutcome:
        outcome = self._brought(number, text)
        self._ended(number, outcome)
        return outcome

    def _brought(self, number: int, text: str) -> PrewarmOutcome:
        uri = str(parse_uri(text)[0])
        last: list[Progress] = []

        def look(progress: Progress) -> None:
            last[:] = [progress]
            self._progress(number, progress)

        try:
            self._cancel.check()
            snapshot = self._asking.bring(text, look, self._cancel)
            for tries_left in reversed(range(PIN_TRIES if self._asking.pin_for is not None else 0)):
                try:
                    self._store.pin(snapshot.digest, holder=self._asking.pin_for or "")
                    break
                except NotCached:
                    if tries_left == 0:
                        raise
                    snapshot = self._asking.bring(text, look, self._cancel)
        except ModelCacheError as error:
            return PrewarmOutcome(uri, progress=last[0] if last else None, error=error)
        return PrewarmOutcome(uri, snapshot, last[0] if last else None)


def _for_caller(work: Callable[[int, str], T]) -> Callable[[int, str], T]:
    """The same from another thread, for logs and spans still the caller's (`modelcache.telemetry`)."""
    context = contextvars.copy_context()
    return lambda number, text: context.copy().run(work, number, text)


def each_once(uris: Iterable[str]) -> tuple[dict[int, PrewarmOutcome], dict[int, str]]:
    """Outcomes so far and the texts that are URIs, by number; a text that names a place once more is left out."""
    outcomes: dict[int, PrewarmOutcome] = {}
    texts: dict[int, str] = {}
    seen = set()
    for text in uris:
        number = len(outcomes)
        try:
            asked = parse_uri(text)
        except ModelCacheError as error:
            outcomes[number] = PrewarmOutcome(redact_url(text), error=error)
            continue
        if asked not in seen:
            seen.add(asked)
            outcomes[number] = PrewarmOutcome(str(asked[0]))
            texts[number] = text
    return outcomes, texts


def _begun_bytes(usage: Usage) -> int:
    """What fetches have brought and no snapshot shows: whoever wants it goes on with it, or waits for it; what nobody wants may go. Each
    fetch books for itself in the end."""
    unshown_bytes = usage.content_bytes - usage.own_bytes - usage.shared_bytes
    return usage.ingest_bytes + usage.trash_bytes + max(0, unshown_bytes)


def _missing(store: Store, listing: Listing, ref: Ref | None) -> dict[str, int]:
    """Size by identity of the files whose bytes aren't known to be here."""
    known = fetched_before(listing, ref, claimed=True) | claims(listing)
    missing = {}
    for item in listing.files:
        digest = known.get(item.path)
        if digest is None or not store.has_blob(digest):
            missing[str(digest) if digest is not None else f"{listing.origin}\n{item.locator}\n{item.validator}"] = item.size_bytes
    return missing


def read_list(lines: Iterable[str]) -> Sequence[str]:
    """The URIs of a list, one a line. Empty lines and those that begin with `#` mean nothing: a `#` further on is a part of a URI."""
    stripped = (line.removeprefix("\ufeff").strip() for line in lines)  # the byte order mark that some editors write
    return [line for line in stripped if line and not line.startswith("#")]
