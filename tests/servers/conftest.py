"""What the tests of this folder share: a bucket, each under a prefix of its own, and a file system of fsspec's, each alone."""

from __future__ import annotations

import secrets

import fsspec
import pytest

from modelcache.testing.servers import SeaweedFS
from tests.servers.shelf import Shelf

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


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> type[Shelf]:
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    for name, value in (("store", {}), ("pseudo_dirs", [""]), ("made", []), ("facts", {}), ("raises", None), ("before_read", None)):
        monkeypatch.setattr(Shelf, name, value)
    return Shelf
