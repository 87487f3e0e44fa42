"""The audit sees every violation: a sound store, spoilt in one way at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.crash import flip_bit
from modelcache.testing.crash_bench import NO_LIMITS
from modelcache.testing.store_filling import content, digest_of, fill, manifest_of, ref_of, table_of, wanted
from modelcache.units import MIB

WEIGHTS = content(5 * MIB, seed=1)
FILES = {"dir/model.safetensors": WEIGHTS, "config.json": b"{}", "empty": b""}
DIGITS = digest_of(WEIGHTS).hex
SMALL = digest_of(b"{}").hex
NAME = manifest_of(FILES).digest.hex
Spoil = Callable[[Path], object]


def blob(root: Path, digits: str = DIGITS) -> Path:
    return root / "blobs" / "sha256" / digits[:2] / digits


def table(root: Path, digits: str = DIGITS) -> Path:
    return root / "chunks" / "sha256" / digits[:2] / digits


def member(root: Path, path: str = "dir/model.safetensors") -> Path:
    return root / "snapshots" / NAME / path


def the(root: Path, directory: str) -> Path:
    [path] = (root / directory).iterdir()
    return path


def another_name(path: Path) -> None:
    os.link(path, path.parents[4] / "outside")


def copied(path: Path) -> None:
    """In place of a link, an equal file of its own."""
    path.parent.chmod(0o755)
    shutil.copy2(path, path.parent / "copy")
    (path.parent / "copy").rename(path)
    path.parent.chmod(0o555)


def remove(path: Path) -> None:
    path.parent.chmod(0o755)
    path.unlink()
    path.parent.chmod(0o555)


def put(path: Path, data: bytes = b"x", mode: int = 0o600) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parent_mode = path.parent.stat().st_mode
    path.parent.chmod(0o700)
    path.write_bytes(data)
    path.chmod(mode)
    path.parent.chmod(parent_mode)


ALWAYS: dict[str, tuple[Spoil, str]] = {
    "wrong bytes": (lambda root: flip_bit(blob(root), 7), "WRONG BYTES"),
    "wrong mode": (lambda root: blob(root).chmod(0o644), "has mode 0644"),
    "wrong time": (lambda root: os.utime(blob(root, SMALL)), "has mtime"),
    "no table": (lambda root: table(root).unlink(), "no chunk table"),
    "wrong table": (lambda root: flip_bit(table(root), 40), "is not the chunk table"),
    "needless table": (lambda root: put(table(root, SMALL), table_of(b"{}").encode(), 0o444), "blob of one chunk"),
    "empty blob": (lambda root: put(blob(root, digest_of(b"").hex), b"", 0o444), "a blob of no bytes"),
    "stray blob": (lambda root: put(blob(root).parent / "readme"), "no name of a blob"),
    "name elsewhere": (lambda root: another_name(blob(root)), "names, of which"),
    "no link": (lambda root: copied(member(root)), "is no inode of blob"),
    "missing file": (lambda root: remove(member(root)), "is missing"),
    "additional file": (lambda root: put(member(root, "dir/.cache"), b"x", 0o444), "is not in the manifest"),
    "damaged manifest": (lambda root: flip_bit(root / "manifests" / f"{NAME}.json", 30), "not what its name says"),
    "damaged ref": (lambda root: flip_bit(the(root, "refs"), 0), "is not a ref"),
    "misplaced ref": (lambda root: the(root, "refs").rename(root / "refs" / f"{'0' * 64}.json"), "under another name"),
    "damaged pin": (lambda root: flip_bit(the(root, "leases"), 0), "is not a lease"),
    "strange directory": (lambda root: (root / "tmp").mkdir(), "is no part of a store"),
    "strange root": (lambda root: root.chmod(0o755), "has mode 0755"),
    "strange file": (lambda root: put(root / "refs" / "readme.txt"), "is no record"),
    "damaged format": (lambda root: flip_bit(root / "format", 0), "is not a format file"),
    "quarantined": (lambda root: put(root / "quarantine" / f"{DIGITS}.0", b"x", 0o444), "nothing of this name was damaged"),
    "numbered blob": (lambda root: blob(root).rename(blob(root).with_name(f"{DIGITS}.2")), "its inodes are numbered [2]"),
    "strange ingest": (lambda root: put(root / "ingest" / ("0" * 32) / "notes"), "is no part of an ingest"),
}
LEFT_OVER: dict[str, tuple[Spoil, str]] = {
    "writable directory": (lambda root: (root / "snapshots" / NAME / "dir").chmod(0o755), "has mode 0755"),
    "temporary": (lambda root: put(root / "refs" / f".tmp-{'0' * 16}"), "a temporary name"),
    "no lock": (lambda root: (root / "lock.turn").unlink(), "missing"),
    "unnamed blob": (lambda root: put_blob(root, b"unnamed"), "no snapshot and no ingest names it"),
    "table of nothing": (lambda root: put(table(root).parent / (DIGITS[:2] + "0" * 62), b"x", 0o444), "no blob of this name"),
    "snapshot of nothing": (lambda root: (root / "manifests" / f"{NAME}.json").unlink(), "no manifest of this name"),
    "manifest of nothing": (lambda root: shutil.move(root / "snapshots" / NAME, root / "trash" / "t"), "no snapshot of this name"),
    "writable top": (lambda root: (root / "snapshots" / NAME).chmod(0o755), "has mode 0755"),
    "trash": (lambda root: put(root / "trash" / "t"), "in the trash"),
    "ingest": (lambda root: LocalStore(root, NO_LIMITS).ingest(ref_of(FILES, uri="s3://b/other").key, wanted(FILES)).keep(), "an ingest"),
    "lease": (lambda root: LocalStore(root, NO_LIMITS).lease(manifest_of(FILES).digest, holder="a pod", ttl_s=60), "a lease of nobody"),
}


def put_blob(root: Path, data: bytes) -> None:
    path = blob(root, digest_of(data).hex)
    put(path, data, 0o444)
    path.parent.chmod(0o700)
    os.utime(path, (315_532_800, 315_532_800))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with a snapshot, a ref and a pin, and nothing left over."""
    store = LocalStore(tmp_path / "root", NO_LIMITS)
    store.pin(fill(store, FILES).digest, holder="somebody")
    assert audit(store.root, Moment.SETTLED) == []
    return store.root


@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize(("spoil", "said"), ALWAYS.values(), ids=ALWAYS)
def test_what_must_never_be(root: Path, spoil: Spoil, said: str, moment: Moment) -> None:
    spoil(root)
    assert said in "\n".join(audit(root, moment))


@pytest.mark.parametrize(("spoil", "said"), LEFT_OVER.values(), ids=LEFT_OVER)
def test_what_a_crash_may_leave_and_nothing_else(root: Path, spoil: Spoil, said: str) -> None:
    LocalStore(root, NO_LIMITS).unpin(manifest_of(FILES).digest)
    spoil(root)
    assert audit(root, Moment.CRASHED) == []
    assert said in "\n".join(audit(root, Moment.SETTLED))
    LocalStore(root, NO_LIMITS, clock=lambda: 4e9).collect()
    assert audit(root, Moment.SETTLED) == []
