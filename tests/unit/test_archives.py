"""Hostile archives: whatever their headers say, what comes out are safe names with the right bytes, or an error that says why."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelcache.errors import BadArchive, DigestMismatch, NotFound, UnsafePath
from modelcache.paths import check_tree
from modelcache.testing.archives import Written, tar_of, zip_of
from modelcache.units import MIB
from tests.unit.opened_archive import ADDRESS, EXPECTED, GOOD, MEMBERS, gz, unpacked

# -- any members ----------------------------------------------------------------------------------------------------------

HOSTILE = st.one_of(
    st.sampled_from(
        [
            "a",
            "b",
            "a/b",
            "./a",
            "d/./e",
            "../x",
            "/x",
            "a/../../x",
            "a//b",
            "a\nb",
            "x" * 300,
            "\udcff",
            ".",
            "..",
            "d/",
            "\u2028",
            "C:\\x",
        ]
    ),
    st.text("ab/.\\", min_size=1, max_size=8),
)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE])
ENTRIES = st.lists(
    st.builds(
        lambda name, data, kind, target: Written(name, data if kind == tarfile.REGTYPE else b"", kind, target),
        HOSTILE,
        st.binary(max_size=40),
        KINDS,
        HOSTILE,
    ),
    max_size=5,
)


@settings(max_examples=150)
@given(ENTRIES, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.booleans())
@example(
    [Written("a", b"x"), Written("l", kind=tarfile.SYMTYPE, target="a"), Written("h", kind=tarfile.LNKTYPE, target="./a")],
    tarfile.PAX_FORMAT,
    False,
)
def test_any_members_of_a_tar_are_safe_or_refused(entries: list[Written], form: int, packed: bool) -> None:
    data = tar_of(entries, form=form)
    try:
        found = unpacked(gz(data) if packed else data)
    except (UnsafePath, NotFound, BadArchive):
        return
    expect_safe(found, entries)


@settings(max_examples=100)
@given(ENTRIES, st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
def test_any_members_of_a_zip_are_safe_or_refused(entries: list[Written], method: int) -> None:
    entries = [entry for entry in entries if entry.kind != tarfile.LNKTYPE and entry.name.isascii() and "\n" not in entry.name]
    try:
        found = unpacked(zip_of(entries, method=method))
    except (UnsafePath, NotFound, BadArchive):
        return
    expect_safe(found, entries)


def expect_safe(found: Mapping[str, bytes], entries: list[Written]) -> None:
    """Every name can be kept, and every content is that of a regular member of this archive."""
    check_tree(found)
    files = {entry.data for entry in entries if entry.kind == tarfile.REGTYPE}
    assert set(found.values()) <= files
    for entry in entries:
        if entry.kind == tarfile.REGTYPE and entry.name in found:
            assert found[entry.name] == entry.data


# -- any damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GOOD)
def test_good_ones_are_read(kind: str) -> None:
    assert unpacked(GOOD[kind]) == EXPECTED
    assert unpacked(GOOD[kind], include=("*.json",)) == {"config.json": b"{}"}
    with pytest.raises(NotFound):
        unpacked(GOOD[kind], include=("*.onnx",))


@pytest.mark.parametrize("kind", GOOD)
@settings(max_examples=100)
@given(data=st.data())
def test_a_cut_is_always_noticed(kind: str, data: st.DataObject) -> None:
    good = GOOD[kind]
    needed = len(good) if kind != "tar" else good.rstrip(b"\0").__len__() + 1024
    cut = data.draw(st.integers(0, min(needed, len(good)) - 1))
    if kind == "tar" and cut // 512 * 512 >= len(good.rstrip(b"\0")) + 512:
        cut = len(good.rstrip(b"\0"))
    with pytest.raises(BadArchive):
        unpacked(good[:cut])


@pytest.mark.parametrize("kind", GOOD)
@settings(max_examples=100)
@given(data=st.data())
def test_a_flipped_bit_gives_an_error_or_safe_names(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(GOOD[kind])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = unpacked(bytes(damaged))
    except (BadArchive, UnsafePath, NotFound, DigestMismatch):
        return
    check_tree(found)
    if kind != "tar":  # a tar has no checksum of contents
        assert set(found.values()) <= set(EXPECTED.values())


@settings(max_examples=150)
@given(
    st.binary(max_size=2000),
    st.sampled_from([b"", b"PK", b"PK\x05\x06" + bytes(18), b"\x1f\x8b\x08" + bytes(7), bytes(1024)]),
    st.booleans(),
)
def test_no_bytes_do_harm(noise: bytes, magic: bytes, before: bool) -> None:
    with pytest.raises((BadArchive, NotFound)):
        unpacked(magic + noise if before else noise + magic)


# -- what each form may hold ----------------------------------------------------------------------------------------------


def test_links_become_the_files_that_they_lead_to() -> None:
    data = tar_of(
        [
            Written("snapshots/v1/w.bin", kind=tarfile.SYMTYPE, target="../../blobs/abc"),
            Written("blobs/abc", b"weights"),
            Written("again", kind=tarfile.SYMTYPE, target="snapshots/v1/w.bin"),
            Written("hard", kind=tarfile.LNKTYPE, target="blobs/abc"),
        ]
    )
    assert set(unpacked(data).values()) == {b"weights"}
    assert len(unpacked(gz(data))) == 4
    assert unpacked(data, include=("snapshots/*",)) == {"snapshots/v1/w.bin": b"weights"}
    zipped = zip_of([Written("l", kind=tarfile.SYMTYPE, target="d/f"), Written("d/f", b"x")])
    assert unpacked(zipped) == {"l": b"x", "d/f": b"x"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (Written("l", kind=tarfile.SYMTYPE, target="/etc/passwd"), "no file of this archive"),
        (Written("l", kind=tarfile.SYMTYPE, target="../../etc/passwd"), "no file of this archive"),
        (Written("l", kind=tarfile.LNKTYPE, target="../f"), "no file of this archive"),
        (Written("l", kind=tarfile.SYMTYPE, target="l"), "chain"),
        (Written("l", kind=tarfile.SYMTYPE, target="d"), "no file of this archive"),
        (Written("p", kind=tarfile.FIFOTYPE), "device"),
        (Written("c", kind=tarfile.CHRTYPE), "device"),
        (Written("f", b"twice"), "twice"),
        (Written("f/g", b"below a file"), "directory"),
        (Written("../f", b"up"), "no name"),
        (Written("/f", b"root"), "absolute"),
        (Written("d/../../f", b"up"), "no name"),
    ],
)
def test_what_is_no_file_is_refused_unless_left_out(entry: Written, said: str) -> None:
    data = tar_of([Written("f", b"x"), Written("d/", kind=tarfile.DIRTYPE), Written("d/g", b"y"), entry])
    with pytest.raises(UnsafePath, match=said) as caught:
        unpacked(data)
    assert caught.value.address == ADDRESS
    assert unpacked(data, include=("d/g",)) == {"d/g": b"y"}


def test_members_of_gzip_and_what_follows() -> None:
    tar = GOOD["tar"]
    halves = gz(tar[:700]) + gz(tar[700:])
    assert unpacked(halves) == EXPECTED
    assert unpacked(halves + bytes(5000)) == EXPECTED
    with pytest.raises(BadArchive, match="something else"):
        unpacked(halves + b"junk")
    wrong = bytearray(halves)
    wrong[-8] ^= 1
    with pytest.raises(BadArchive, match="damaged"):
        unpacked(bytes(wrong))


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = kind, len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (pax(b"18 GNU.sparse.a=1\n"), "sparse"),
        (pax(b"9 path=x\n", b"g"), "global"),
        (pax(b"99 path=x\n"), "can't be read"),
        (pax(b"path=x\n"), "can't be read"),
        (pax(b"9 size=x\n"), "no number"),
        (pax(b"5014 path=" + b"n" * 5003 + b"\n"), "a name of 5003 bytes"),
        (pax(bytes(2 * MIB), b"L"), "extended header"),
        (b"\x01" * 512, "header at byte 0"),
    ],
)
def test_headers_that_nobody_needs_are_refused(head: bytes, said: str) -> None:
    with pytest.raises(BadArchive, match=said):
        unpacked(head + GOOD["tar"])


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("m.zip", b"words" * 200, "as a zip: it has no end"),
        ("m.zip", b"", "as a zip: it has no end"),
        ("m.tar", b"words" * 200, "as a tar: a header at byte 0"),
        ("m.zip", gz(b"words" * 200), "as a tar packed with gzip: a header at byte 0"),
        ("m.ZIP", b"7z\xbc\xaf\x27\x1c" + bytes(600), "'m.ZIP' is packed as 7z, and no tar"),
        ("m.tar", b"BZh9" + bytes(600), "'m.tar' is packed with bzip2"),
        ("m.tgz", b"<!DOCTYPE html>", "'m.tgz' is a web page"),
    ],
)
def test_what_is_no_archive_is_told_by_its_name_and_by_what_it_is(name: str, data: bytes, said: str) -> None:
    with pytest.raises(BadArchive, match=said):
        unpacked(data, name=name)


@pytest.mark.parametrize("name", ["m.zip", "m.tar", "m.tgz"])
@pytest.mark.parametrize("kind", GOOD)
def test_an_archive_is_read_as_what_it_is_whatever_its_name_says(kind: str, name: str) -> None:
    assert unpacked(GOOD[kind], name=name) == EXPECTED
    if kind == "zip" and name == "m.zip":
        assert unpacked(b"#!/bin/sh\n" + GOOD[kind], name=name) == EXPECTED  # one that unpacks itself


def test_a_sparse_file_and_an_unknown_kind_are_refused() -> None:
    for kind in (tarfile.GNUTYPE_SPARSE, b"Z"):
        with pytest.raises(BadArchive, match="sparse" if kind == tarfile.GNUTYPE_SPARSE else "unknown kind"):
            unpacked(tar_of([Written("f", kind=kind)]))


def test_a_size_of_the_extended_header_counts() -> None:
    """As for files over 8 GiB: the old header has no room for it."""
    body = b"z" * 700
    info = tarfile.TarInfo("big")
    info.size = 0
    data = pax(b"12 size=700\n") + info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512) + GOOD["tar"]
    assert unpacked(data)["big"] == body


def test_an_encrypted_zip_is_refused() -> None:
    data = bytearray(GOOD["zip"])
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + offset] |= 1
    with pytest.raises(BadArchive, match="encrypted"):
        unpacked(bytes(data))


def test_an_entry_whose_bytes_would_go_on_behind_the_archive_is_refused() -> None:
    data = bytearray(GOOD["zip"])
    for at, size in (("d/empty", 1 << 20), ("w.bin", 1 << 20)):
        record = data.rindex(at.encode()) - 46  # APPNOTE 4.3.12: the fixed part of a record of the directory, packed size at 20
        before = data[record + 20 : record + 24]
        data[record + 20 : record + 24] = struct.pack("<L", size)
        with pytest.raises(BadArchive, match=f"{at}' go on into its directory"):
            unpacked(bytes(data))
        data[record + 20 : record + 24] = before


def test_other_packings_of_zip_are_refused() -> None:
    with pytest.raises(BadArchive, match="method 12"):
        unpacked(zip_of(MEMBERS, method=zipfile.ZIP_BZIP2))


def test_a_zip_of_many_names_for_one_piece_is_refused() -> None:
    """The bomb of David Fifield (2019): entries that overlap."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("aa", bytes(100_000))
        archive.writestr("ab", b"x")
    data = bytearray(packed.getvalue())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    struct.pack_into("<L", data, second + 42, 0)
    with pytest.raises(BadArchive, match="another name"):
        unpacked(bytes(data))
    data[second + 46 : second + 48] = b"aa"
    with pytest.raises((BadArchive, UnsafePath), match=r"overlap|twice"):
        unpacked(bytes(data))


def test_a_zip_with_64_bit_sizes_and_one_behind_a_program_are_read() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive, archive.open("f", "w", force_zip64=True) as file:
        file.write(b"x" * 1000)
    assert unpacked(packed.getvalue()) == {"f": b"x" * 1000}
    assert unpacked(b"PK is how this program begins" + packed.getvalue()) == {"f": b"x" * 1000}


def test_a_member_that_goes_on_or_ends_early_is_refused() -> None:
    for size, said in ((5_999, "goes on"), (6_001, "before its size"), (0, "no size, and bytes")):
        data = bytearray(GOOD["zip"])
        at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
        struct.pack_into("<L", data, at + 24, size)
        with pytest.raises(BadArchive, match=said):
            unpacked(bytes(data))
        if size == 0:  # whatever its checksum says of the bytes
            struct.pack_into("<L", data, at + 16, 0)
            with pytest.raises(BadArchive, match=said):
                unpacked(bytes(data))
