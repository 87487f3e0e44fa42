from __future__ import annotations

import hashlib
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from modelcache.digest import Algorithm, Digest, sha256
from modelcache.errors import DigestMismatch
from modelcache.fetch.checksums import Verification, running

# What each gives for the nine bytes `123456789`: the catalogue of parametrised CRC algorithms (reveng), RFC 1321, FIPS 180-4.
CHECK = b"123456789"
KNOWN = {
    Algorithm.CRC32: "cbf43926",
    Algorithm.CRC32C: "e3069283",
    Algorithm.CRC64NVME: "ae8b14860a799888",
    Algorithm.MD5: "25f9e794323b453885f5181f1b624d0b",
    Algorithm.SHA1: "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
    Algorithm.SHA256: "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
}


@pytest.mark.parametrize("algorithm", [item for item in Algorithm if item is not Algorithm.GIT_SHA1])
def test_known_values(algorithm: Algorithm) -> None:
    checksum = running(algorithm, len(CHECK))
    assert checksum is not None
    checksum.update(memoryview(CHECK)[:4])
    checksum.update(memoryview(CHECK)[4:])
    assert checksum.hexdigest() == KNOWN[algorithm]


def test_git_names_the_empty_file_so() -> None:
    checksum = running(Algorithm.GIT_SHA1, 0)
    assert checksum is not None
    assert checksum.hexdigest() == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def digest_by(algorithm: Algorithm, data: bytes) -> Digest:
    checksum = running(algorithm, len(data))
    assert checksum is not None
    checksum.update(memoryview(data))
    return Digest(algorithm, checksum.hexdigest())


@given(data=st.binary(max_size=2000), cuts=st.lists(st.integers(0, 2000), max_size=5))
def test_how_the_bytes_are_cut_changes_nothing(data: bytes, cuts: list[int]) -> None:
    stated = [digest_by(algorithm, data) for algorithm in Algorithm]
    verification = Verification(len(data), stated)
    marks = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, stop in pairwise(marks):
        verification.update(memoryview(data)[start:stop])
    assert verification.result("x", len(data)) == sha256(hashlib.sha256(data).hexdigest())
    assert verification.compared == tuple(stated)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_each_statement_is_compared(algorithm: Algorithm) -> None:
    stated = [digest_by(item, b"right" if item is not algorithm else b"wrong") for item in Algorithm]
    verification = Verification(5, stated)
    verification.update(memoryview(b"right"))
    with pytest.raises(DigestMismatch) as error:
        verification.result("s3://b/k", 5)
    assert error.value.expected == str(digest_by(algorithm, b"wrong"))
    assert error.value.got == str(digest_by(algorithm, b"right"))
    assert error.value.address == "s3://b/k"
    assert error.value.retryable


def test_two_statements_of_one_algorithm_must_both_hold() -> None:
    right, wrong = digest_by(Algorithm.MD5, b"right"), digest_by(Algorithm.MD5, b"wrong")
    for stated in ([right, wrong], [wrong, right]):
        verification = Verification(5, stated)
        verification.update(memoryview(b"right"))
        with pytest.raises(DigestMismatch):
            verification.result("x", 5)


def test_what_cannot_be_computed_here_counts_as_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "awscrt", None)
    known = digest_by(Algorithm.MD5, b"right")
    verification = Verification(5, [Digest(Algorithm.CRC64NVME, "0" * 16), known])
    verification.update(memoryview(b"right"))
    verification.result("x", 5)
    assert verification.compared == (known,)
