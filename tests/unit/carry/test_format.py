"""Export format 1, byte by byte, and what other tools make of it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.abc.snapshot import Ref, RefFile, RefKey
from modelcache.carry.contents import Contents
from modelcache.carry.exporting import Chosen, export
from modelcache.carry.tar import END, MAX_USTAR_BYTES, header, read_header
from modelcache.digest import Digest
from modelcache.patience import Cancellation
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import complete_all, digest_of, manifest_of, wanted
from modelcache.testing.store_fixtures import NO_LIMITS

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "format.md"
FILES = {"config.json": b'{"model_type": "tiny"}\n', "empty": b""}
KEY = RefKey("s3://models/tiny", "https://s3.eu-central-1.amazonaws.com:443")
REF = Ref(
    key=KEY,
    revision="listing-0123456789abcdef0123456789abcdef",
    immutable=False,
    manifest=manifest_of(FILES).digest,
    files=tuple(RefFile(path, len(data), f'"etag-{path}"', digest_of(data), ()) for path, data in FILES.items()),
    created_at_s=1_700_000_000.0,
    checked_at_s=1_700_000_000.5,
)


def tiny(directory: Path) -> bytes:
    """The export of the document."""
    store = LocalStore(directory / "root", NO_LIMITS)
    ingest = store.ingest(KEY, wanted(FILES))
    complete_all(ingest, FILES)
    ingest.publish(manifest_of(FILES), REF)
    place = directory / "tiny.tar"
    export(store, [Chosen(REF.manifest, (REF,))], place, progress=None, cancel=Cancellation())
    return place.read_bytes()


def written(data: bytes) -> str:
    """As the document shows it: a line for each block that is not all zeros, with offset and text of what is not zero."""
    lines = []
    for at in range(0, len(data), 512):
        runs = [f"{at + run.start()} {json.dumps(run.group().decode())}" for run in re.finditer(rb"[^\0]+", data[at : at + 512])]
        lines += [" ".join(runs)] if runs else []
    return "\n".join([*lines, f"{len(data)} end"]) + "\n"


def test_golden_bytes(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```export\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)

    assert written(tiny(tmp_path)) == shown


def test_tar_reads_it(tmp_path: Path) -> None:
    data = tiny(tmp_path)
    listed = subprocess.run(["tar", "-t"], input=data, capture_output=True, check=True, timeout=60)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {member.name: (member.isreg(), member.size, member.mode, member.mtime, member.uid) for member in archive}

    assert listed.stderr == b""
    assert listed.stdout.decode().split() == list(members)
    blob = f"blobs/sha256/f6/{digest_of(FILES['config.json']).hex}"
    assert members[blob] == (True, 23, 0o444, 315_532_800, 0)


@pytest.mark.parametrize("size_bytes", [0, 1, 511, 512, MAX_USTAR_BYTES, MAX_USTAR_BYTES + 1, 10**15])
def test_python_s_tarfile_reads_headers_of_every_size(size_bytes: int) -> None:
    with tarfile.open(fileobj=io.BytesIO(header("blobs/x", size_bytes) + END), mode="r|") as archive:
        member = archive.next()

    assert member is not None
    assert (member.name, member.size, member.isreg()) == ("blobs/x", size_bytes, True)


@given(st.text("abcdef0123456789/.", min_size=1, max_size=100), st.integers(0, 2**63))
def test_a_header_is_read_back_as_it_was_written(name: str, size_bytes: int) -> None:
    assert read_header(header(name, size_bytes)) == (name, size_bytes)


@given(st.binary(min_size=512, max_size=512))
def test_no_other_block_is_a_header(block: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_header(block)


@given(st.integers(0, 511), st.integers(1, 255))
def test_a_header_with_any_byte_altered_is_none(at: int, change: int) -> None:
    block = bytearray(header("blobs/sha256/ab", 4711))
    block[at] ^= change
    try:
        found = read_header(bytes(block))
    except ValueError:
        return
    assert header(*found) == bytes(block)  # never: the checksum is of every byte
    raise AssertionError(f"byte {at} may be altered")


def test_the_size_of_an_export_is_known_before_it_is_written(tmp_path: Path) -> None:
    assert Contents.of([manifest_of(FILES)], [REF]).size_bytes == len(tiny(tmp_path))


def test_each_content_is_carried_once() -> None:
    first, second = {"a": b"same", "b": b"same"}, {"c": b"same", "d": b"other"}
    blobs: list[Digest] = [blob.digest for blob in Contents.of([manifest_of(first), manifest_of(second)], []).blobs]

    assert sorted(blobs, key=str) == sorted([digest_of(b"same"), digest_of(b"other")], key=str)
