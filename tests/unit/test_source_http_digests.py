"""Checksums in headers: which count for the whole file, and which are of the part that came."""

from __future__ import annotations

import base64
import hashlib
import logging

import pytest

from modelcache.digest import Algorithm, Digest
from modelcache.sources.http_digests import stated_digests
from modelcache.transport.head import Headers

DATA = b"weights"
SHA256 = hashlib.sha256(DATA).hexdigest()
MD5 = hashlib.md5(DATA).hexdigest()
SHA256_64 = base64.b64encode(bytes.fromhex(SHA256)).decode()
MD5_64 = base64.b64encode(bytes.fromhex(MD5)).decode()
CRC32C_64 = "AAAAAQ=="
OF_WHOLE = Digest(Algorithm.SHA256, SHA256)
MD5_OF_WHOLE = Digest(Algorithm.MD5, MD5)


@pytest.mark.parametrize(
    ("name", "value", "digests"),
    [
        ("Repr-Digest", f"sha-256=:{SHA256_64}:", {OF_WHOLE}),
        ("Repr-Digest", f"sha-512=:{'A' * 86}==:, sha-256=:{SHA256_64}:;x=1", {OF_WHOLE}),
        ("Digest", f"SHA-256={SHA256_64}", {OF_WHOLE}),
        ("Digest", f"unixsum=12, sha-256={SHA256_64},md5={MD5_64}", {OF_WHOLE, MD5_OF_WHOLE}),
        ("X-Checksum-Sha256", SHA256.upper(), {OF_WHOLE}),
        ("X-Checksum-Md5", MD5, {MD5_OF_WHOLE}),
        ("X-Linked-Etag", f'"{SHA256}"', {OF_WHOLE}),
        ("X-Linked-Etag", SHA256, {OF_WHOLE}),
        ("X-Linked-Etag", '"a94a8fe5ccb19ba61c4c0873d391e987982fbbd3"', set()),
        ("x-goog-hash", f"crc32c={CRC32C_64},md5={MD5_64}", {Digest(Algorithm.CRC32C, "00000001"), MD5_OF_WHOLE}),
        ("x-ms-blob-content-md5", MD5_64, {MD5_OF_WHOLE}),
        ("ETag", f'"{MD5}"', set()),
    ],
)
@pytest.mark.parametrize("status", [200, 206])
def test_a_digest_of_the_file_counts_in_every_answer(status: int, name: str, value: str, digests: set[Digest]) -> None:
    assert set(stated_digests(status, Headers([(name, value)]))) == digests


@pytest.mark.parametrize(
    ("name", "value", "digest"),
    [
        ("Content-Digest", f"sha-256=:{SHA256_64}:", OF_WHOLE),
        ("Content-MD5", MD5_64, MD5_OF_WHOLE),
        ("x-amz-checksum-sha256", SHA256_64, OF_WHOLE),
        ("x-amz-checksum-crc32c", CRC32C_64, Digest(Algorithm.CRC32C, "00000001")),
        ("x-amz-checksum-crc64nvme", "AAAAAAAAAAI=", Digest(Algorithm.CRC64NVME, "0000000000000002")),
    ],
)
def test_a_digest_of_the_body_counts_only_if_the_body_is_the_file(name: str, value: str, digest: Digest) -> None:
    headers = Headers([(name, value)])
    assert stated_digests(200, headers) == (digest,)
    assert stated_digests(206, headers) == ()


def test_a_checksum_of_checksums_says_nothing_about_the_bytes() -> None:
    assert stated_digests(200, Headers([("x-amz-checksum-sha256", f"{SHA256_64}-3")])) == ()
    composite = [("x-amz-checksum-type", "COMPOSITE"), ("x-amz-checksum-sha256", SHA256_64)]
    assert stated_digests(200, Headers(composite)) == ()


def test_googles_hash_of_what_it_stores_encoded_is_none_of_what_it_serves() -> None:
    headers = [("x-goog-stored-content-encoding", "gzip"), ("x-goog-hash", f"md5={MD5_64}")]
    assert stated_digests(200, Headers(headers)) == ()


def test_one_that_can_not_be_read_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    headers = [("Digest", "sha-256=????"), ("X-Checksum-Sha256", "abc"), ("Repr-Digest", f"sha-256={SHA256_64}"), ("Content-MD5", "!")]
    with caplog.at_level(logging.WARNING):
        assert stated_digests(200, Headers(headers)) == (OF_WHOLE,)
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == ["digest", "x-checksum-sha256", "content-md5"]


def test_the_hubs_hash_also_counts_on_a_redirect() -> None:
    redirect = Headers([("X-Linked-Etag", f'"{SHA256}"'), ("Repr-Digest", f"md5=:{MD5_64}:")])
    assert stated_digests(206, Headers([]), (Headers([]), redirect)) == (OF_WHOLE,)
