"""The manifest's bytes are format 1 on disk: they never change, and nothing but them is read."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modelcache.digest import Algorithm, Digest, sha256
from modelcache.errors import DamagedRecord, ModelCacheError, UnsafePath
from modelcache.manifest import Manifest, ManifestFile

A, B = sha256("a" * 64), sha256("0123456789abcdef" * 4)
GOLDEN = (
    b'{"files":['
    b'{"path":"Z.json","sha256":"' + b"a" * 64 + b'","size_bytes":0},'
    b'{"path":"dir/\xc3\xa9.bin","sha256":"' + b"0123456789abcdef" * 4 + b'","size_bytes":4976698672},'
    b'{"path":"dir/\xf0\x9f\x98\x80","sha256":"' + b"a" * 64 + b'","size_bytes":1}'
    b'],"version":1}\n'
)
GOLDEN_DIGEST = "sha256:ec4bd6c283cec77e20503fcb89cd125e0d199eb2419f6e2c023f4a726d1df690"
MANIFEST = Manifest.of([ManifestFile("dir/\U0001f600", 1, A), ManifestFile("dir/é.bin", 4976698672, B), ManifestFile("Z.json", 0, A)])

PATHS = st.lists(st.text("abc.é\U0001f600\uffff ", min_size=1, max_size=6), min_size=1, max_size=3).map("/".join)
FILES = st.builds(ManifestFile, PATHS, st.integers(0, 1 << 60), st.text("0123456789abcdef", min_size=64, max_size=64).map(sha256))


def test_golden_bytes_and_digest() -> None:
    assert MANIFEST.encode() == GOLDEN
    assert str(MANIFEST.digest) == GOLDEN_DIGEST
    assert hashlib.sha256(GOLDEN).hexdigest() == MANIFEST.digest.hex
    assert Manifest.decode(GOLDEN, expect=MANIFEST.digest) == MANIFEST
    assert MANIFEST.size_bytes == 4976698673


@given(st.lists(FILES, max_size=6, unique_by=lambda file: file.path), st.data())
def test_equal_content_gives_equal_bytes_that_read_back(files: list[ManifestFile], data: st.DataObject) -> None:
    try:
        manifest = Manifest.of(files)
    except UnsafePath:
        assume(False)
    assert Manifest.of(data.draw(st.permutations(files))).encode() == manifest.encode()
    assert Manifest.decode(manifest.encode()) == manifest
    assert [file.path.encode() for file in manifest.files] == sorted(file.path.encode() for file in files)


def test_any_changed_bit_is_found() -> None:
    for bit in range(8 * len(GOLDEN)):
        damaged = bytearray(GOLDEN)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedRecord):
            Manifest.decode(bytes(damaged), expect=MANIFEST.digest, address="manifests/x.json")


@pytest.mark.parametrize("cut", [0, 1, 50, len(GOLDEN) - 1])
def test_a_cut_or_lengthened_record_is_found(cut: int) -> None:
    for data in (GOLDEN[:cut], GOLDEN + GOLDEN[:cut] + b"\n"):
        with pytest.raises(DamagedRecord):
            Manifest.decode(data)


def test_another_manifest_than_expected_is_refused() -> None:
    with pytest.raises(DamagedRecord) as caught:
        Manifest.decode(GOLDEN, expect=A, address="manifests/x.json")
    assert (caught.value.expected, caught.value.got) == (str(A), GOLDEN_DIGEST)
    assert caught.value.address == "manifests/x.json"


def record(**changed: object) -> bytes:
    file = {"path": "a", "sha256": "a" * 64, "size_bytes": 1} | changed
    return json.dumps({"files": [file], "version": 1}, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def test_the_record_that_the_next_test_damages_is_good() -> None:
    assert Manifest.decode(record()).files == (ManifestFile("a", 1, A),)


@pytest.mark.parametrize(
    "data",
    [
        record(size_bytes=-1),
        record(size_bytes="1"),
        record(size_bytes=1.0),
        record(size_bytes=True),
        record(size_bytes=float("inf")),
        record(size_bytes=None),
        record(path="../a"),
        record(path="/a"),
        record(path=1),
        record(path="\ud800"),
        record(sha256="A" * 64),
        record(sha256="a" * 63),
        record(extra=1),
        GOLDEN.replace(b'"version":1', b'"version":2'),
        GOLDEN.replace(b'"version":1', b'"version":true'),
        GOLDEN.replace(b"\xc3\xa9", b"\\u00e9"),
        GOLDEN.replace(b",", b", "),
        GOLDEN.decode().encode("utf-16"),
        b"[]\n",
        b"null\n",
        b"[" * 100_000,
        b'{"files":{},"version":1}\n',
    ],
    ids=lambda data: data[:60].decode("latin-1"),
)
def test_what_is_not_canonical_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedRecord):
        Manifest.decode(data)


@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(DamagedRecord):
        Manifest.decode(data)


@pytest.mark.parametrize("paths", [["a", "a"], ["a", "a/b"], [""], ["a/../b"], ["\udcff"]])
def test_files_that_form_no_tree_are_refused(paths: list[str]) -> None:
    with pytest.raises(UnsafePath):
        Manifest.of(ManifestFile(path, 1, A) for path in paths)


def test_a_file_has_a_size_and_a_sha256() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        ManifestFile("a", -1, A)
    with pytest.raises((ValueError, ModelCacheError), match="md5"):
        ManifestFile("a", 1, Digest(Algorithm.MD5, "0" * 32))
