"""An import of what a fetch in progress has the claims on."""

from __future__ import annotations

from pathlib import Path

from modelcache.carry.exporting import Chosen, export
from modelcache.carry.importing import import_file
from modelcache.chunks import CHUNK_BYTES
from modelcache.patience import Cancellation
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.store_filling import complete_all, content, fill, manifest_of, ref_of, wanted, write_chunks
from modelcache.testing.store_fixtures import NO_LIMITS

FILES = {"w.safetensors": content(2 * CHUNK_BYTES + 5, seed=1), "config.json": b"{}"}


def test_an_import_does_not_wait_for_who_fetches_the_same(tmp_path: Path) -> None:
    origin, store = LocalStore(tmp_path / "origin", NO_LIMITS), LocalStore(tmp_path / "root", NO_LIMITS)
    snapshot = fill(origin, FILES)
    export(origin, [Chosen(snapshot.digest, tuple(origin.refs()))], tmp_path / "models.tar", progress=None, cancel=Cancellation())
    fetching = store.ingest(ref_of(FILES).key, wanted(FILES, known=True))
    write_chunks(fetching.files[0], FILES["w.safetensors"], [0])
    report = import_file(store, tmp_path / "models.tar", progress=None, cancel=Cancellation())
    assert report.written_bytes == sum(map(len, FILES.values()))
    [shown] = store.list()
    assert {path: (shown.path / path).read_bytes() for path in FILES} == FILES
    complete_all(fetching, FILES)
    fetching.publish(manifest_of(FILES), ref_of(FILES))
    assert sum(path.is_file() for path in (store.root / "blobs").rglob("*")) == len(FILES)
    assert audit(store.root, Moment.CRASHED) == []
