"""Models carried from one store to another: whole, verified, each content once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.carry.exporting import Chosen, export
from modelcache.errors import DamagedExport
from modelcache.patience import Cancellation
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.store_filling import fill, manifest_of
from tests.unit.carry.stores import ONE, SHARED, TWO, carried_in, carried_out, flip, shown


def test_models_arrive_whole_and_an_export_of_them_has_the_same_bytes(
    origin: LocalStore, target: LocalStore, file: Path, tmp_path: Path
) -> None:
    report = carried_in(target, file)

    assert audit(target.root, Moment.SETTLED) == []
    assert {imported.uris: shown(imported.snapshot.path) for imported in report.snapshots} == {
        ("s3://models/one",): dict(ONE),
        ("s3://models/two",): dict(TWO),
    }
    assert target.refs() == origin.refs()
    total = sum(map(len, {**ONE, **TWO}.values())) - len(SHARED)
    assert (report.written_bytes, report.reused_bytes, report.read_bytes) == (total, 0, file.stat().st_size)
    carried_out(target, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == file.read_bytes()


def test_what_is_here_is_compared_and_not_written(target: LocalStore, file: Path) -> None:
    fill(target, ONE, uri="s3://other/one")
    before = {path.name: path.lstat().st_ino for path in (target.root / "blobs").rglob("*") if path.is_file()}

    report = carried_in(target, file)

    assert (report.written_bytes, [imported.hit for imported in report.snapshots].count(True)) == (len(TWO["w.safetensors"]), 1)
    after = {path.name: path.lstat().st_ino for path in (target.root / "blobs").rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    assert carried_in(target, file).written_bytes == 0
    assert audit(target.root, Moment.SETTLED) == []


def test_bytes_that_are_here_are_hashed_in_the_file_all_the_same(target: LocalStore, file: Path) -> None:
    carried_in(target, file)
    flip(file, file.read_bytes().index(SHARED))

    with pytest.raises(DamagedExport, match=r"expected sha256.*chunks of 4 MiB that differ: 0"):
        carried_in(target, file)


def test_a_ref_that_was_confirmed_later_stays(target: LocalStore, file: Path) -> None:
    newer = {"config.json": b"newer"}
    fill(target, newer, uri="s3://models/one")
    (mine,) = target.refs("s3://models/one")
    target.touch(mine, checked_at_s=mine.checked_at_s + 1)

    report = carried_in(target, file)

    assert [imported.superseded for imported in report.snapshots if imported.superseded] == [("s3://models/one",)]
    assert target.refs("s3://models/one")[0].manifest == manifest_of(newer).digest
    assert target.snapshot(manifest_of(ONE).digest) is not None
    assert audit(target.root, Moment.SETTLED) == []


def test_a_time_to_come_counts_as_the_time_of_the_import(origin: LocalStore, target: LocalStore, tmp_path: Path) -> None:
    (ref,) = origin.refs("s3://models/one")
    told = replace(ref, created_at_s=-1e300, checked_at_s=9e9)
    export(origin, [Chosen(ref.manifest, (told,))], tmp_path / "f", progress=None, cancel=Cancellation())

    carried_in(target, tmp_path / "f")

    assert target.refs()[0].checked_at_s < 9e9
    assert target.refs()[0].created_at_s == 0.0  # of which every face can make a date
