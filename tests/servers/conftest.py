"""A bucket that the tests of this folder share, each under a prefix of its own."""

from __future__ import annotations

import secrets

import pytest

from modelcache.testing.servers import SeaweedFS

BODY = b"weights of a model"


@pytest.fixture(scope="session")
def shared_bucket(seaweedfs: SeaweedFS) -> str:
    return seaweedfs.make_bucket(f"bucket-{secrets.token_hex(6)}")


@pytest.fixture
def filled(seaweedfs: SeaweedFS, shared_bucket: str) -> str:
    """URI of a prefix of this test alone, with one object, `f`, of 18 bytes."""
    prefix = f"{secrets.token_hex(6)}/m"
    seaweedfs.put(shared_bucket, f"{prefix}/f", BODY)
    return f"s3://{shared_bucket}/{prefix}"
