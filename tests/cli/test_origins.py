"""How `pull` reaches real servers: S3 with a profile, without a credential, https under a CA of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelcache.testing.fault_server import FaultServer
from modelcache.testing.servers import Certificate, SeaweedFS
from tests.cli.executable import Executable


@pytest.fixture
def profile(tmp_path: Path, seaweedfs: SeaweedFS) -> dict[str, str]:
    """Variables that lead to a profile `reader` with a credential of the server."""
    path = tmp_path / "credentials"
    identity = seaweedfs.admin
    path.write_text(f"[reader]\naws_access_key_id = {identity.access_key}\naws_secret_access_key = {identity.secret_key}\n")
    return {"AWS_SHARED_CREDENTIALS_FILE": str(path)}


def test_s3_by_options(cli: Executable, seaweedfs: SeaweedFS, bucket: str, profile: dict[str, str]) -> None:
    seaweedfs.put(bucket, "llama/model.bin", b"weights")
    seaweedfs.put(bucket, "llama/notes.txt", b"notes")
    where = ["--endpoint", seaweedfs.endpoint, "--region", "us-east-1", "--path-style"]
    uri = f"s3://{bucket}/llama"

    pulled = cli("pull", "--json", uri, "--profile", "reader", "--exclude", "*.txt", *where, **profile)
    refused = cli("pull", "--json", uri, "--anonymous", *where, **profile)
    absent = cli("pull", "--json", f"{uri}-2", "--profile", "reader", *where, **profile)
    unknown = cli("pull", "--json", uri, "--profile", "nobody", *where, **profile)

    assert pulled.code == 0, pulled.err
    (snapshot,) = pulled.document["snapshots"]
    assert snapshot["uri"] == f"{uri}#exclude=*.txt"
    assert os.listdir(snapshot["path"]) == ["model.bin"]
    assert (refused.code, refused.document["error"]["code"]) == (4, "access-denied")
    assert (absent.code, absent.document["error"]["code"]) == (3, "not-found")
    assert unknown.code not in (0, 1)
    offline = cli("pull", "--json", "--offline", f"{uri}#exclude=*.txt")  # the settings lead to AWS
    assert (offline.code, f"`{seaweedfs.endpoint}`" in offline.document["error"]["hint"]) == (3, True)
    for done in (pulled, refused, absent, unknown):
        assert seaweedfs.admin.secret_key not in done.out + done.err


def test_https_under_a_ca_of_its_own(cli: Executable, certificate: Certificate) -> None:
    with FaultServer(certificate) as server:
        server.put("/model.bin", b"weights")
        uri = f"{server.endpoint}/model.bin"
        trusted = cli("pull", "--json", uri, "--ca-file", certificate.ca)
        untrusted = cli("pull", "--json", uri)
        absent = cli("pull", "--json", uri, "--ca-file", "/nowhere.pem")

    assert trusted.code == 0
    assert (untrusted.code, untrusted.document["error"]["code"]) == (5, "origin-untrusted")
    assert (absent.code, absent.document["error"]["code"]) == (2, "bad-config")
