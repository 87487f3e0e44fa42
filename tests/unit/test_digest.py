"""Digests as text, hex and base64."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.digest import HEX_LENGTHS, Algorithm, Digest, digits_of, nearly_digits, sha256
from modelcache.errors import InvalidUri

VALUES = st.sampled_from(list(Algorithm)).flatmap(
    lambda algorithm: st.binary(min_size=HEX_LENGTHS[algorithm] // 2, max_size=HEX_LENGTHS[algorithm] // 2).map(
        lambda raw: (algorithm, raw)
    )
)


@given(VALUES)
def test_every_spelling_gives_the_same_digest(value: tuple[Algorithm, bytes]) -> None:
    algorithm, raw = value
    digest = Digest(algorithm, raw.hex())
    assert str(digest) == f"{algorithm}:{raw.hex()}"
    assert Digest.parse(str(digest)) == digest
    assert Digest.parse(f"{algorithm}:{raw.hex().upper()}") == digest
    assert Digest.of_base64(algorithm, base64.b64encode(raw).decode()) == digest
    assert hash(Digest.parse(str(digest))) == hash(digest)


def test_a_name_is_a_digest_or_its_beginning_or_something_else() -> None:
    digits = "0123456789abcdef" * 4
    assert digits_of(digits) == digits_of(f"sha256:{digits}") == digits
    assert digits_of(f"sha256:{digits[:8]}") == digits[:8]
    assert [digits_of(name) for name in (digits[:7], "model", "./sha256:x", "s3://b/k")] == [None] * 4
    for name in ("sha256:0123456", "sha256:model", "sha256:", f"sha256:{digits}0", f"sha256:{digits.upper()}"):
        with pytest.raises(InvalidUri, match="not a digest"):
            digits_of(name)
    assert [nearly_digits(name) for name in (digits, digits[:8], "model", "", f"sha256:{digits[:7]}", "s3://b/k", "./a")] == [None] * 7
    assert all(nearly_digits(name) for name in ("0", digits[:7], digits.upper(), "ABCDEF01", f"{digits}0"))


@given(VALUES, st.sampled_from(list(Algorithm)))
def test_another_length_is_refused(value: tuple[Algorithm, bytes], other: Algorithm) -> None:
    algorithm, raw = value
    if HEX_LENGTHS[other] == len(raw) * 2:
        assert Digest(other, raw.hex()) != Digest(algorithm, raw.hex()) or other is algorithm
        return
    with pytest.raises(InvalidUri, match=f"{HEX_LENGTHS[other]} lower-case hex digits"):
        Digest(other, raw.hex())
    with pytest.raises(InvalidUri):
        Digest.of_base64(other, base64.b64encode(raw).decode())


HEX = "a" * 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        HEX,
        f"sha257:{HEX}",
        f"SHA256:{HEX}",
        f"sha256:{HEX}\n",
        f"sha256: {HEX}"[:-1],
        "sha256:" + "\u0661" * 64,
    ],
)
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(InvalidUri) as caught:
        Digest.parse(text)
    assert caught.value.got is not None


@pytest.mark.parametrize("text", ["", "AAAA", "AAAAAA=", "AAAA AA==", "AAAAAA==\n", "AAA_-A==", "éAAAAA=="])
def test_what_is_no_base64_of_a_crc(text: str) -> None:
    with pytest.raises(InvalidUri):
        Digest.of_base64(Algorithm.CRC32C, text)


@pytest.mark.parametrize("value", ["A" * 64, "a" * 63, "a" * 65, " " * 64])
def test_identity_is_lower_case_hex(value: str) -> None:
    with pytest.raises(InvalidUri) as caught:
        sha256(value)
    assert caught.value.got == value


def test_known_answers() -> None:
    """The empty input, as `sha256sum` and S3's `x-amz-checksum-crc64nvme` print it."""
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert Digest.of_base64(Algorithm.SHA256, "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=") == sha256(empty)
    assert Digest.of_base64(Algorithm.CRC64NVME, "AAAAAAAAAAA=").hex == "0" * 16
