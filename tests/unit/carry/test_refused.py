"""Files that are no export of ours, or no longer: refused whole, with nothing kept."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache.abc.snapshot import Ref
from modelcache.abc.store import Limits
from modelcache.carry.contents import Contents
from modelcache.carry.tar import END, header, padding, read_header
from modelcache.chunks import CHUNK_BYTES
from modelcache.errors import DamagedExport, FileFault, NoSpace
from modelcache.manifest import Manifest, ManifestFile
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import content, digest_of, fill, manifest_of, ref_of, table_of
from tests.unit.carry.stores import ONE, SHARED, TWO, Files, carried_in, carried_out, store_at, tree


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
