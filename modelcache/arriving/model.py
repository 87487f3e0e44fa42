"""A model of which some small files say what is read next: they come first, each verified, while the others are on their way."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from modelcache.arriving.arrival import Arrival
from modelcache.arriving.checkpoint import ArrivingFolder
from modelcache.arriving.company import Company, gathered
from modelcache.arriving.opening import How, Opened, open_source
from modelcache.cache import ModelCache
from modelcache.digest import Digest
from modelcache.errors import BadCheckpoint
from modelcache.fetch.begun import Begun
from modelcache.loader.group import Member
from modelcache.loader.report import LoadReport
from modelcache.patience import Cancellation
from modelcache.uri import parse_uri


class AskedModel:
    """The files at the root of a model that a URI or a directory names. A context manager: a URI's model is fetched, or held, while the
    block lasts; what is still on its way when it ends is cancelled (chunks are kept).
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        how: How,
        *,
        cache: ModelCache | None,
        cancel: Cancellation | None = None,
        seen: LoadReport | None = None,
        member: Member | None = None,
    ) -> None:
        """
        Args:
            source: a storage URI, or a directory on this machine.
            how: the tensors are read.
            cache: for URIs; None: the one that the environment describes.
            seen: told how long it took until it is here, or its fetch has begun, and until headers were read.
            member: this rank of a group whose ranks ask for the same, in the same order.
        """
        self.source = os.fspath(source)
        self._how = how
        self._cache = cache
        self._cancel = cancel or Cancellation()
        self._seen = seen or LoadReport()
        self._member = member
        self._held = ExitStack()
        self._arrival: Arrival | None = None
        self._company: Company | None = None
        self._folder: ArrivingFolder | None = None
        self._path = Path(self.source)

    def __enter__(self) -> Self:
        """Raises what `ModelCache.ensure` raises until it knows what there is, and `gathered`."""
        started_s = time.monotonic()
        try:
            if "://" in self.source:
                used = self._cache or self._held.enter_context(ModelCache())
                self._arrival = self._held.enter_context(Arrival(used, self.source, self._cancel, reads_next=self._how.reads_next))
                found, self._company = gathered(
                    self._arrival, self._member, verified_only=self._how.verified_only, held=self._held, cancel=self._cancel
                )
                if isinstance(found, Begun):
                    self._folder = self._arriving(self._arrival, found)
                else:
                    self._path = found
        except BaseException:
            self._held.close()
            raise
        self._seen.fetched_s += time.monotonic() - started_s
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.__exit__(kind, error, trace)

    def _arriving(self, arrival: Arrival, begun: Begun) -> ArrivingFolder:
        how = self._how
        return ArrivingFolder(arrival, begun, self._cancel, how.verified_only, may_map=how.may_map is not False)

    @property
    def address(self) -> str:
        """For errors: the canonical URI, without a secret, or the directory."""
        return str(parse_uri(self.source)[0]) if "://" in self.source else self.source

    def has(self, name: str) -> bool:
        """Whether it has such a file."""
        return (self._path / name).is_file() if self._folder is None else name in self._folder.names

    def first(self, names: Collection[str], *, then: str | None) -> Path:
        """A directory with those of these small files that the model has, each verified; nothing else may be looked for there.

        Args:
            then: the file or index of the checkpoint that is read next.

        Raises:
            What `ModelCache.ensure` raises.
        """
        folder = self._folder
        if folder is None:
            return self._path
        present = [name for name in names if name in folder.names]
        folder.want(present)
        folder.want_first(then)
        directory = Path(self._held.enter_context(TemporaryDirectory(prefix="modelcache-")))
        found = {name: folder.verified(name) for name in present} if self._company is None else self._company.verified(folder, present)
        for name, data in found.items():
            (directory / name).write_bytes(data)
        return directory

    def open(self, named: str | None) -> Opened:
        """One checkpoint of it, by its file or index; None: the one index there, else every safetensors file.

        Raises:
            BadCheckpoint: its headers make no sense. NotFound: there is no such file. What `ModelCache.ensure` raises.
        """
        if self._folder is not None and self._arrival is not None:
            started_s = time.monotonic()
            try:
                company = self._company
                found = self._folder.open_checkpoint(named) if company is None else company.open_checkpoint(self._folder, named)
                return Opened(found, self._folder.open_file, self._arrival, company, self._how.all_at_once, self._how.may_map is not False)
            except BadCheckpoint:
                self._arrival.dropped()  # whether headers make sense is said of verified ones alone
            finally:
                self._seen.opened_s += time.monotonic() - started_s
        return open_source(self.whole() / (named or ""), self._how, cache=None, held=self._held, cancel=self._cancel, seen=self._seen)

    def whole(self) -> Path:
        """Its directory, once all of it is here, verified and published.

        Raises:
            DigestMismatch: it isn't what was read of it while it arrived. What `ModelCache.ensure` raises.
        """
        if self._folder is not None and self._arrival is not None:
            self._path = (self._company or self._arrival).finish()
            self._folder = None
        return self._path

    @property
    def digest(self) -> Digest:
        """Of a URI's snapshot, once all of it is here."""
        assert self._arrival is not None
        return self._arrival.digest
