"""What a cache does with whole models and a file: export and import."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from modelcache.abc.store import SnapshotInfo, Store
from modelcache.carry.exporting import BytesProgress, Chosen, ExportReport, export
from modelcache.carry.file import Place
from modelcache.carry.importing import ImportReport, import_file
from modelcache.digest import digits_of
from modelcache.errors import BadConfig, NotCached
from modelcache.patience import Cancellation
from modelcache.uri import parse_uri


class Carrying(ABC):
    """The part of `ModelCache` that carries models from one store to another."""

    _store: Store

    @abstractmethod
    def find(self, name: str) -> SnapshotInfo:
        """The snapshot of a URI, a digest or its first digits."""

    def export(
        self, names: Sequence[str] | None, place: Place, *, progress: BytesProgress | None = None, cancel: Cancellation | None = None
    ) -> ExportReport:
        """Write snapshots into one file that `import_` of another store reads (`docs/format.md`, Exports). Asks no origin.

        Every byte is compared with its digest on the way. What a URI names is exported with that URI, what a digest names with every
        URI that leads to it.

        Args:
            names: as `find` takes them; None: everything that all share.
            place: a path, which appears whole, durable, and in place of what was there; or an open stream.

        Raises:
            NotCached, AmbiguousName: as `find`.
            BadConfig: one is a namespace's own (`isolation: namespace`); of everything, those are left out.
            DamagedBlob, NoSpace, FileFault, Cancelled: and there is no half file.
        """
        everything = [self._with_refs(info, None) for info in self._store.list()] if names is None else []
        chosen = [item for item in everything if not self._home(item)] if names is None else [self._chosen(name) for name in names]
        for item in chosen:
            if home := self._home(item):
                raise BadConfig(
                    f"snapshot `{item.manifest}` is in the part of the store that namespace `{home}` has for itself, and stays there",
                    hint="pull its URI as the store's owner, and export that",
                )
        if not chosen:
            raise NotCached("there is nothing to export")
        return export(self._store, chosen, place, progress=progress, cancel=cancel or Cancellation())

    def import_(self, place: Place, *, progress: BytesProgress | None = None, cancel: Cancellation | None = None) -> ImportReport:
        """Bring in what `export` wrote, after every byte of it was verified. What names lead to is the file's word: import only what
        you would pull (`docs/semantics.md`, Carrying).

        Raises:
            DamagedExport, NoSpace, FileFault, StoreError, Cancelled: nothing of it is kept.
        """
        return import_file(self._store, place, progress=progress, cancel=cancel or Cancellation())

    def _home(self, item: Chosen) -> str:
        return self._store.manifest(item.manifest).compartment

    def _chosen(self, name: str) -> Chosen:
        info = self.find(name)
        return self._with_refs(info, None if digits_of(name) is not None else str(parse_uri(name)[0]))

    def _with_refs(self, info: SnapshotInfo, uri: str | None) -> Chosen:
        """A snapshot with its refs, or those of one URI."""
        found = [self._store.ref(head.key) for head in info.refs if uri in (None, head.key.uri)]
        return Chosen(info.digest, tuple(ref for ref in found if ref is not None and ref.manifest == info.digest))
