"""Stores to carry models between, and two models that share a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from modelcache.abc.store import Limits
from modelcache.carry.exporting import Chosen, ExportReport, export
from modelcache.carry.file import Place
from modelcache.carry.importing import ImportReport, import_file
from modelcache.chunks import CHUNK_BYTES
from modelcache.patience import Cancellation
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import content, fill
from modelcache.testing.store_fixtures import NO_LIMITS

SHARED = content(CHUNK_BYTES + 77, seed=1)
ONE = {"config.json": b"{}", "deep/w.safetensors": content(2 * CHUNK_BYTES + 5, seed=2), "shared.bin": SHARED, "empty": b""}
TWO = {"w.safetensors": content(3000, seed=3), "again.bin": SHARED}
Files = Mapping[str, bytes]


def store_at(path: Path, limits: Limits = NO_LIMITS) -> LocalStore:
    return LocalStore(path, limits)


def carried_out(store: LocalStore, place: Place, *, cancel: Cancellation | None = None) -> ExportReport:
    chosen = [Chosen(info.digest, tuple(ref for head in info.refs if (ref := store.ref(head.key)) is not None)) for info in store.list()]
    return export(store, chosen, place, progress=None, cancel=cancel or Cancellation())


def carried_in(store: LocalStore, place: Place, *, cancel: Cancellation | None = None) -> ImportReport:
    return import_file(store, place, progress=None, cancel=cancel or Cancellation())


def shown(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def tree(root: Path) -> list[tuple[str, int]]:
    """Path and inode of everything in a store but the directories that blobs and tables are spread over."""
    paths = [path for path in sorted(root.rglob("*")) if len(path.name) != 2]
    return [(str(path.relative_to(root)), path.lstat().st_ino) for path in paths]


def two_models(root: Path) -> LocalStore:
    """A store with two models that share a file."""
    store = store_at(root)
    fill(store, ONE, uri="s3://models/one")
    fill(store, TWO, uri="s3://models/two")
    return store


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 1]))
