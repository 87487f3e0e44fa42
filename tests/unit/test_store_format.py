"""Format 1, byte by byte: a store built from fixed inputs holds exactly what `docs/format.md` shows."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import secrets
import stat
from pathlib import Path

import pytest

from modelcache.abc.grants import Grant, Holder
from modelcache.abc.snapshot import Ref, RefFile, RefKey
from modelcache.digest import Algorithm, Digest
from modelcache.patience import Cancellation
from modelcache.store.layout import FIXED_MTIME_S
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import complete_all, digest_of, manifest_of, table_of, wanted, write_chunks
from modelcache.testing.store_fixtures import NO_LIMITS, Clock

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "format.md"
OWNER = 1000
NOW_S = 1_700_000_000.0
FILES = {"config.json": b'{"model_type": "tiny"}\n', "empty": b"", "weights/tiny.bin": b"\0" * (4 << 20) + b"\1"}
KEY = RefKey("s3://models/tiny", "https://s3.eu-central-1.amazonaws.com:443")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of the document: ids count up, the clock stands still, the owner is user id 1000."""
    count = itertools.count(1)
    monkeypatch.setattr(secrets, "token_hex", lambda size: f"{next(count):0{2 * size}x}")
    monkeypatch.setattr(os, "geteuid", lambda: OWNER)
    root = tmp_path / "root"
    root.mkdir()
    os.chown(root, OWNER, -1) if os.getuid() == 0 else None
    store = LocalStore(root, NO_LIMITS, clock=Clock(NOW_S))
    _publish(store)
    _interrupt(store)
    digest = manifest_of(FILES).digest
    store.lease(digest, holder="pod default/chat-0", ttl_s=3600)
    store.pin(digest, holder="user")
    _grant(store)
    assert store.verify(digest, Cancellation()).damages == ()
    return root


def _publish(store: LocalStore) -> None:
    stated = {"config.json": (Digest(Algorithm.MD5, hashlib.md5(FILES["config.json"], usedforsecurity=False).hexdigest()),)}
    ref = Ref(
        key=KEY,
        revision="listing-0123456789abcdef0123456789abcdef",
        immutable=False,
        manifest=manifest_of(FILES).digest,
        files=tuple(RefFile(path, len(data), f'"etag-{path}"', digest_of(data), stated.get(path, ())) for path, data in FILES.items()),
        created_at_s=NOW_S,
        checked_at_s=NOW_S + 0.5,
    )
    ingest = store.ingest(KEY, wanted(FILES))
    complete_all(ingest, FILES)
    ingest.publish(manifest_of(FILES), ref)


def _grant(store: LocalStore) -> None:
    holder = Holder("team-a", "default", store.grants.mac(b"AKIAEXAMPLE"))
    blobs = tuple(sorted(digest_of(data) for data in FILES.values() if data))
    revision = "listing-0123456789abcdef0123456789abcdef"
    store.grants.put(Grant(holder, KEY, revision, manifest_of(FILES).digest, blobs, NOW_S, NOW_S + 86_400))


def _interrupt(store: LocalStore) -> None:
    """An ingest of which one file is complete and of another one chunk is written."""
    files = {"config.json": FILES["config.json"], "weights/tiny.bin": FILES["weights/tiny.bin"]}
    ingest = store.ingest(RefKey("s3://models/next", KEY.origin), wanted(files, version='s3.eu models/next "etag-2"'))
    first, second = ingest.files
    write_chunks(first, files["config.json"])
    first.complete(digest_of(files["config.json"]), table_of(files["config.json"]))
    write_chunks(second, files["weights/tiny.bin"], [1])
    ingest.keep()


def shown() -> dict[str, bytes]:
    """Path → content of every file that the document shows: as text, or as hex digits."""
    found = {}
    for kind, path, body in re.findall(r"^```(text|hex) ([^\n ]+)\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        found[path] = body.encode() if kind == "text" else bytes.fromhex(re.sub(r"\s|#.*", "", body))
    return found


def small_files(root: Path) -> dict[str, bytes]:
    """Every file of the store but model files and empty ones."""
    found = {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file() and path.stat().st_size}
    return {name: path.read_bytes() for name, path in found.items() if not re.match(r"blobs/|snapshots/|ingest/[0-9a-f]+/tree/", name)}


def test_golden_bytes(root: Path) -> None:
    assert small_files(root) == shown()


def test_blobs_are_what_sha256sum_says(root: Path) -> None:
    blobs = {path.name: path for path in (root / "blobs" / "sha256").glob("*/*")}
    assert set(blobs) == {digest_of(data).hex for data in FILES.values() if data}
    for digits, path in blobs.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digits
        assert path.parent.name == digits[:2]


def test_modes_times_and_links(root: Path) -> None:
    snapshot = root / "snapshots" / manifest_of(FILES).digest.hex
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for directory in (snapshot, snapshot / "weights"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o555
    for path, data in FILES.items():
        found = (snapshot / path).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_mtime) == (0o444, FIXED_MTIME_S)
        if data:
            digits = digest_of(data).hex
            assert (root / "blobs" / "sha256" / digits[:2] / digits).stat().st_ino == found.st_ino
    assert (root / "manifests" / f"{snapshot.name}.json").stat().st_mtime == NOW_S


def test_the_document_names_every_directory(root: Path) -> None:
    text = DOCUMENT.read_text("utf-8")
    for path in root.iterdir():
        assert f"`{path.name}" in text, path.name
