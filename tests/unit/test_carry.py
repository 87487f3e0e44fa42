"""Models carried from one store to another: whole, verified, each content once; or nothing at all."""

from __future__ import annotations

import io
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.abc.snapshot import Ref
from modelcache.abc.store import Limits
from modelcache.carry import holding
from modelcache.carry.contents import Contents
from modelcache.carry.exporting import Chosen, ExportReport, export
from modelcache.carry.file import Place
from modelcache.carry.holding import held_all
from modelcache.carry.importing import ImportReport, import_file
from modelcache.carry.tar import END, header, padding, read_header
from modelcache.chunks import CHUNK_BYTES
from modelcache.digest import Digest
from modelcache.errors import Cancelled, DamagedBlob, DamagedExport, FileFault, InUse, NoSpace
from modelcache.manifest import Manifest, ManifestFile
from modelcache.patience import Cancellation
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.store_filling import content, digest_of, fill, manifest_of, ref_of, table_of
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


@pytest.fixture
def origin(tmp_path: Path) -> LocalStore:
    return two_models(tmp_path / "origin")


@pytest.fixture(scope="module")
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    carried_out(two_models(directory / "origin"), directory / "models.tar")
    return directory / "models.tar"


@pytest.fixture
def file(exported_once: Path, tmp_path: Path) -> Path:
    """An export of two models."""
    return Path(shutil.copy(exported_once, tmp_path))


@pytest.fixture
def target(tmp_path: Path) -> LocalStore:
    return store_at(tmp_path / "target")


# -- what arrives -----------------------------------------------------------------------------------------------------


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
    export(origin, [Chosen(ref.manifest, (replace(ref, checked_at_s=9e9),))], tmp_path / "f", progress=None, cancel=Cancellation())

    carried_in(target, tmp_path / "f")

    assert target.refs()[0].checked_at_s < 9e9


# -- what is refused --------------------------------------------------------------------------------------------------


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 1]))


def interesting(data: bytes) -> list[int]:
    """Offsets of every header's fields, of the first and last byte of every member, and some by chance."""
    chance = random.Random(5)
    found = {len(data) - 1, len(data) - 1024} | {chance.randrange(len(data)) for _ in range(20)}
    for at in range(0, len(data) - 512, 512):
        if data[at + 257 : at + 262] == b"ustar":
            _, size_bytes = read_header(data[at : at + 512])
            found |= {at + field for field in (0, 100, 124, 148, 156, 157, 345, 511, 512, 511 + size_bytes)}
    return sorted(found)


def test_any_altered_byte_is_found_and_nothing_kept(target: LocalStore, tmp_path: Path) -> None:
    small = {"a.json": b"{}", "b.bin": content(CHUNK_BYTES + 3, seed=9)}
    store = store_at(tmp_path / "small")
    fill(store, small)
    carried_out(store, tmp_path / "f")
    data = bytearray((tmp_path / "f").read_bytes())
    carried_in(target, carried(bytes(data)))
    target.evict(manifest_of(small).digest)
    before = tree(target.root)
    for at in interesting(bytes(data)):
        data[at] ^= 1
        with pytest.raises(DamagedExport):
            carried_in(target, carried(bytes(data)))
        assert tree(target.root) == before, at
        data[at] ^= 1


def carried(data: bytes) -> io.BytesIO:
    return io.BytesIO(data)


def test_any_cut_is_found_and_nothing_kept(target: LocalStore, file: Path) -> None:
    data = file.read_bytes()
    before = tree(target.root)
    for at in [0, 1, 511, 512, *random.Random(3).sample(range(len(data)), 12), len(data) - 512, len(data) - 1]:
        with pytest.raises(DamagedExport) as raised:
            carried_in(target, carried(data[:at]))
        assert raised.value.address == "-"
        assert tree(target.root) == before, at


def test_zeros_of_a_tape_block_behind_the_end_are_nothing_and_more_is_refused(target: LocalStore, file: Path) -> None:
    data = file.read_bytes()
    carried_in(target, carried(data + bytes(10_240)))
    for behind in (b"\1", bytes(9000) + b"\1", bytes(10_241), data):
        with pytest.raises(DamagedExport, match="behind its end"):
            carried_in(target, carried(data + behind))


def packed(*members: tuple[str, bytes], end: bytes = END) -> bytes:
    return b"".join(header(name, len(data)) + data + padding(len(data)) for name, data in members) + end


def members_of(files: Files, refs: tuple[Ref, ...] = ()) -> list[tuple[str, bytes]]:
    """What an honest export has."""
    contents = Contents.of([manifest_of(files)], refs)
    bytes_of = {digest_of(data): data for data in files.values()}
    members = list(contents.records())
    for blob in contents.blobs:
        data = bytes_of[blob.digest]
        members.append((blob.name, data))
        if blob.has_table:
            members.append((blob.table_name, table_of(data).encode()))
    return members


def honest() -> list[tuple[str, bytes]]:
    return members_of(ONE, (ref_of(ONE),))


def hostile_manifest(path: str) -> list[tuple[str, bytes]]:
    """An export whose manifest was made without the checks of `Manifest.of`."""
    manifest = Manifest((ManifestFile(path, 2, digest_of(b"{}")),))
    contents = Contents({manifest.digest: manifest}, ())
    return [*contents.records(), (contents.blobs[0].name, b"{}")]


def contradictory() -> list[tuple[str, bytes]]:
    manifest = Manifest.of([ManifestFile("a", 2, digest_of(b"{}")), ManifestFile("b", 3, digest_of(b"{}"))])
    contents = Contents.of([manifest], [])
    return [*contents.records(), (contents.blobs[0].name, b"{}")]


def foreign_ref() -> list[tuple[str, bytes]]:
    contents = Contents.of([manifest_of(ONE)], [ref_of(TWO)])
    return [*contents.records(), *members_of(ONE)[2:]]


def symbolic_link() -> bytes:
    block = bytearray(header("blobs/sha256/ab/x", 0))
    block[156:157] = b"2"
    block[157:168] = b"/etc/passwd"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return packed(*honest()[:3], end=bytes(block) + END)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a way out": lambda: packed(*hostile_manifest("../x")),
    "an absolute name": lambda: packed(*hostile_manifest("/etc/x")),
    "a control character": lambda: packed(*hostile_manifest("a\nb")),
    "two sizes of one content": lambda: packed(*contradictory()),
    "a ref to another model": lambda: packed(*foreign_ref()),
    "a name that is no URI": lambda: packed(*members_of(ONE, (ref_of(ONE, uri="no uri"),))),
    "a URI with a secret": lambda: packed(*members_of(ONE, (ref_of(ONE, uri="s3://key:secret@models/one"),))),
    "a symbolic link": symbolic_link,
    "a member that doesn't belong": lambda: packed(*honest(), ("etc/passwd", b"x")),
    "a blob twice": lambda: packed(*honest(), honest()[-1]),
    "a manifest twice": lambda: packed(*honest()[:2], *honest()[1:]),
    "a blob missing": lambda: packed(*honest()[:-2]),
    "a ref missing": lambda: packed(*honest()[:2], *honest()[3:]),
    "blobs in another order": lambda: packed(*honest()[:3], *reversed(honest()[3:])),
    "no manifest": lambda: packed(honest()[0]),
    "a newer format": lambda: packed(("modelcache-export", b"modelcache export 2\n"), *honest()[1:]),
    "a huge record": lambda: packed(honest()[0], end=header(honest()[1][0], 10**12)),
    "another tar": lambda: packed(("README", b"x")),
    "no tar": lambda: b"\x1f\x8b" + content(4000),
    "nothing": lambda: b"",
}


def test_an_honest_export_is_taken(target: LocalStore) -> None:
    assert len(carried_in(target, carried(packed(*honest()))).snapshots) == 1


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_export_has_is_refused(target: LocalStore, tmp_path: Path, what: str) -> None:
    (tmp_path / "hostile").write_bytes(HOSTILE[what]())
    before = tree(target.root)

    with pytest.raises(DamagedExport) as raised:
        carried_in(target, tmp_path / "hostile")

    assert raised.value.address == str(tmp_path / "hostile")
    assert tree(target.root) == before


def test_no_room_is_told_with_the_numbers_before_the_first_blob(tmp_path: Path, file: Path) -> None:
    store = store_at(tmp_path / "tight", Limits(max_bytes=len(SHARED) + CHUNK_BYTES, high_watermark=1.0, low_watermark=1.0))
    before = tree(store.root)

    with pytest.raises(NoSpace) as raised:
        carried_in(store, file)

    assert raised.value.needed_bytes > raised.value.available_bytes > 0
    assert tree(store.root) == before


def test_files_that_can_t_be_used_are_told(origin: LocalStore, tmp_path: Path) -> None:
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(FileFault) as raised:
            carried_in(origin, place)
        assert raised.value.address == str(place)
    for place in (tmp_path / "none" / "f", tmp_path):
        with pytest.raises(FileFault):
            carried_out(origin, place)


# -- what is left -----------------------------------------------------------------------------------------------------


class Until(Cancellation):
    """Cancelled at the n-th look."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.left = looks

    def check(self) -> None:
        self.left -= 1
        if self.left <= 0:
            self.cancel()
        super().check()


@pytest.mark.parametrize("looks", [1, 3, 8, 20])
def test_a_cancelled_import_leaves_nothing(target: LocalStore, file: Path, looks: int) -> None:
    before = tree(target.root)

    with pytest.raises(Cancelled):
        carried_in(target, file, cancel=Until(looks))

    assert tree(target.root) == before


@pytest.mark.parametrize("looks", [1, 4, 20])
def test_a_cancelled_export_leaves_the_file_that_was_there(origin: LocalStore, tmp_path: Path, looks: int) -> None:
    place = tmp_path / "backup" / "f.tar"
    place.parent.mkdir()
    place.write_bytes(b"older")

    with pytest.raises(Cancelled):
        carried_out(origin, place, cancel=Until(looks))

    assert shown(place.parent) == {"f.tar": b"older"}
    carried_out(origin, place)
    assert list(shown(place.parent)) == ["f.tar"]
    assert place.stat().st_mode & 0o777 == 0o600


def test_damage_is_not_exported(origin: LocalStore, tmp_path: Path) -> None:
    damaged = origin.root / "snapshots" / manifest_of(ONE).digest.hex / "shared.bin"
    damaged.chmod(0o600)
    flip(damaged, CHUNK_BYTES + 5)

    with pytest.raises(DamagedBlob) as raised:
        carried_out(origin, tmp_path / "f.tar")

    assert raised.value.expected == str(digest_of(SHARED))
    assert not (tmp_path / "f.tar").exists()


def test_a_model_is_held_while_it_is_exported(origin: LocalStore) -> None:
    refused: list[Digest] = []

    class Reader(io.RawIOBase):
        def write(self, data: object) -> int:
            if not refused:
                for info in origin.list():
                    with pytest.raises(InUse):
                        origin.evict(info.digest)
                    refused.append(info.digest)
            return memoryview(data).nbytes  # type: ignore[arg-type]

    carried_out(origin, Reader())  # type: ignore[arg-type]

    assert len(refused) == 2
    assert origin.leases() == []


def test_more_models_than_files_may_be_open_are_held_all_the_same(origin: LocalStore) -> None:
    for number in range(4):
        fill(origin, {"name": str(number).encode()}, uri=f"s3://models/{number}")
    manifests = [info.digest for info in origin.list()]
    now_s = [0.0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holding, "PROCESS_HOLDS", 2)
        with held_all(origin, manifests, "export", clock=lambda: now_s[0]) as (held, renew):
            assert list(held) == manifests
            kinds = sorted(str(lease.kind) for lease in origin.leases())
            assert kinds == ["lease"] * 4 + ["process"] * 2
            before = {lease.id: lease.expires_at_s for lease in origin.leases()}
            renew()
            assert {lease.id: lease.expires_at_s for lease in origin.leases()} == before
            now_s[0] = holding.LEASE_S / 2
            renew()
            after = {lease.id: lease.expires_at_s for lease in origin.leases()}
            assert sum(after[lease_id] != expires_at_s for lease_id, expires_at_s in before.items()) == 4

    assert origin.leases() == []


# -- through a pipe ---------------------------------------------------------------------------------------------------


def test_one_store_to_another_through_a_pipe(origin: LocalStore, target: LocalStore) -> None:
    reading, writing = os.pipe()
    reports: list[ImportReport] = []

    def take() -> None:
        with io.FileIO(reading, "rb") as stream:
            reports.append(carried_in(target, stream))

    thread = threading.Thread(target=take)
    thread.start()
    with io.FileIO(writing, "wb") as stream:
        carried_out(origin, stream)
    thread.join()

    assert len(reports[0].snapshots) == 2
    assert audit(target.root, Moment.SETTLED) == []


@pytest.fixture
def idle_pipe() -> Iterator[tuple[io.FileIO, io.FileIO]]:
    """Two ends that nobody else uses."""
    reading, writing = os.pipe()
    with io.FileIO(reading, "rb") as reader, io.FileIO(writing, "wb") as writer:
        yield reader, writer


def test_an_export_that_nobody_reads_can_be_cancelled(origin: LocalStore, idle_pipe: tuple[io.FileIO, io.FileIO]) -> None:
    with cancelled_soon() as cancel, pytest.raises(Cancelled):
        carried_out(origin, idle_pipe[1], cancel=cancel)


def test_an_import_that_nobody_writes_can_be_cancelled(target: LocalStore, idle_pipe: tuple[io.FileIO, io.FileIO]) -> None:
    with cancelled_soon() as cancel, pytest.raises(Cancelled):
        carried_in(target, idle_pipe[0], cancel=cancel)


@contextmanager
def cancelled_soon() -> Iterator[Cancellation]:
    cancel = Cancellation()
    timer = threading.Timer(0.1, cancel.cancel)
    timer.start()
    yield cancel
    timer.join()
