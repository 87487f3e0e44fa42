"""An import beside a fetch of the same: one in progress, and one that was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelcache.carry.exporting import Chosen, export
from modelcache.carry.importing import import_file
from modelcache.chunks import CHUNK_BYTES
from modelcache.errors import DamagedBlob
from modelcache.patience import Cancellation
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.store_filling import complete_all, content, digest_of, fill, manifest_of, ref_of, table_of, wanted, write_chunks
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


def test_an_import_leaves_what_an_interrupted_pull_of_the_uri_has_kept(tmp_path: Path) -> None:
    origin, store = LocalStore(tmp_path / "origin", NO_LIMITS), LocalStore(tmp_path / "root", NO_LIMITS)
    snapshot = fill(origin, FILES)
    export(origin, [Chosen(snapshot.digest, tuple(origin.refs()))], tmp_path / "models.tar", progress=None, cancel=Cancellation())
    newer = {"w.safetensors": content(3 * CHUNK_BYTES, seed=2)}
    pull = store.ingest(ref_of(newer).key, wanted(newer))
    write_chunks(pull.files[0], newer["w.safetensors"], [0, 2])
    pull.keep()
    assert import_file(store, tmp_path / "models.tar", progress=None, cancel=Cancellation()).snapshots[0].uris == (ref_of(FILES).key.uri,)
    again = store.ingest(ref_of(newer).key, wanted(newer))
    assert sorted(again.files[0].hints()) == [0, 2]
    write_chunks(again.files[0], newer["w.safetensors"], [1])
    again.files[0].complete(digest_of(newer["w.safetensors"]), table_of(newer["w.safetensors"]))
    shown = again.publish(manifest_of(newer), ref_of(newer))
    assert (shown.path / "w.safetensors").read_bytes() == newer["w.safetensors"]
    assert audit(store.root, Moment.CRASHED) == []


def test_an_import_does_not_publish_a_blob_found_damaged_meanwhile(tmp_path: Path) -> None:
    origin, store = LocalStore(tmp_path / "origin", NO_LIMITS), LocalStore(tmp_path / "root", NO_LIMITS)
    snapshot = fill(origin, FILES)
    export(origin, [Chosen(snapshot.digest, tuple(origin.refs()))], tmp_path / "models.tar", progress=None, cancel=Cancellation())
    fill(store, {"same": FILES["w.safetensors"]}, uri="s3://b/other")

    def rot(done_bytes: int, total_bytes: int) -> None:
        if done_bytes < total_bytes:
            return
        [path] = (store.root / "blobs").rglob(digest_of(FILES["w.safetensors"]).hex)
        path.chmod(0o600)
        path.write_bytes(bytes(len(FILES["w.safetensors"])))
        assert any(item.digest for item in store.verify(None, Cancellation()).damages)

    with pytest.raises(DamagedBlob, match=r"w\.safetensors"):
        import_file(store, tmp_path / "models.tar", progress=rot, cancel=Cancellation())
    assert store.list() == []
    [imported] = import_file(store, tmp_path / "models.tar", progress=None, cancel=Cancellation()).snapshots
    assert {path: (imported.snapshot.path / path).read_bytes() for path in FILES} == FILES
