"""`gs://` and fsspec's schemes from end to end: through ModelCache to a snapshot, stored once, and without a package too many."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import fsspec
import pytest

from modelcache import ModelCache
from modelcache.config import Config
from modelcache.digest import Algorithm
from modelcache.errors import NotFound
from modelcache.sources.gcs import GcsOptions
from modelcache.testing.s3_sources import options_of
from modelcache.testing.servers import FakeGcs, FtpServer, SeaweedFS
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import MIB
from tests.cli.executable import Executable

WEIGHTS = os.urandom(9 * MIB + 3)


@pytest.fixture
def config(tmp_path: Path, fake_gcs: FakeGcs, seaweedfs: SeaweedFS) -> Config:
    return Config(root=tmp_path / "root", limits=NO_LIMITS, gs=GcsOptions(endpoint=fake_gcs.endpoint), s3=options_of(seaweedfs))


@pytest.fixture
def cache(config: Config) -> Iterator[ModelCache]:
    with ModelCache(config=config) as made:
        yield made


@pytest.fixture
def gs_bucket(fake_gcs: FakeGcs) -> str:
    return fake_gcs.make_bucket(f"bucket-{secrets.token_hex(6)}")


def test_the_same_bytes_of_three_stores_are_stored_once(
    cache: ModelCache, fake_gcs: FakeGcs, gs_bucket: str, seaweedfs: SeaweedFS, bucket: str
) -> None:
    fake_gcs.put(gs_bucket, "llama/weights.bin", WEIGHTS)
    seaweedfs.put(bucket, "copy/of/llama/weights.bin", WEIGHTS)
    fsspec.filesystem("memory").pipe_file(f"/{bucket}/weights.bin", WEIGHTS)
    found = [
        cache.ensure(uri).path / "weights.bin" for uri in (f"gs://{gs_bucket}/llama", f"s3://{bucket}/copy/of/llama", f"memory://{bucket}")
    ]
    assert [path.read_bytes() == WEIGHTS for path in found] == [True] * 3
    assert len({path.stat().st_ino for path in found}) == 1
    fsspec.filesystem("memory").rm(f"/{bucket}", recursive=True)


def test_what_was_compared_is_recorded_and_a_new_generation_is_another_snapshot(
    cache: ModelCache, config: Config, fake_gcs: FakeGcs, gs_bucket: str
) -> None:
    fake_gcs.put(gs_bucket, "m/f", b"old")
    old = cache.ensure(f"gs://{gs_bucket}/m")
    [ref] = cache.refs(f"gs://{gs_bucket}/m")
    [file] = ref.files
    assert [digest.algorithm for digest in file.stated] == [Algorithm.CRC32C]
    assert file.validator.isdecimal()
    fake_gcs.put(gs_bucket, "m/f", b"new")
    assert cache.ensure(f"gs://{gs_bucket}/m").path == old.path  # within `refresh`
    with ModelCache(config=replace(config, refresh_s=0.0)) as fresh:
        new = fresh.ensure(f"gs://{gs_bucket}/m")
    assert ((old.path / "f").read_bytes(), (new.path / "f").read_bytes()) == (b"old", b"new")


def test_a_model_comes_over_ftp_by_the_command_line(tmp_path: Path) -> None:
    """The password from a URI on stdin, then as an argument of the filesystem; in neither case is it told."""
    with FtpServer(tmp_path / "ftp") as server:
        for name, data in (("m/config.json", b"{}"), ("m/deep/weights.bin", WEIGHTS)):
            path = server.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            os.utime(path, (1_600_000_000, 1_600_000_000))
        cli = Executable(tmp_path / "root")
        uri = f"ftp://{server.authority}/m"
        userinfo = f"{server.user}:{quote(server.password, safe='')}@"
        done = cli("pull", "-", stdin=uri.replace("ftp://", f"ftp://{userinfo}") + "\n")
        assert done.code == 0, done.err
        assert (Path(done.out.strip()) / "deep/weights.bin").read_bytes() == WEIGHTS
        arguments = f'{{"username": "{server.user}", "password": "{server.password}"}}'
        again = cli("pull", uri, MODELCACHE_FSSPEC_FTP=arguments)
        assert (again.code, again.out) == (0, done.out), again.err
        denied = cli("pull", uri, MODELCACHE_FSSPEC_FTP=arguments.replace(server.user, "nobody"))
        assert denied.code != 0
        assert "access-denied" in cli("pull", uri, "--json", MODELCACHE_FSSPEC_FTP=arguments.replace(server.user, "nobody")).out
    said = done.err + again.err + denied.err
    assert server.password not in said
    assert quote(server.password, safe="") not in said


def test_a_place_that_is_not_there_is_not_found(cache: ModelCache, gs_bucket: str) -> None:
    for uri in (f"gs://{gs_bucket}/nothing", "gs://no-such-bucket/nothing", "memory://nothing/here"):
        with pytest.raises(NotFound):
            cache.ensure(uri)


@pytest.mark.parametrize("scheme", ["file", "gs"])
def test_no_sdk_is_imported_that_the_scheme_does_not_need(scheme: str, tmp_path: Path, fake_gcs: FakeGcs, gs_bucket: str) -> None:
    fake_gcs.put(gs_bucket, "m/f", b"x")
    (tmp_path / "m").mkdir()
    (tmp_path / "m/f").write_bytes(b"x")
    uri = f"gs://{gs_bucket}/m" if scheme == "gs" else str(tmp_path / "m")
    program = (
        "import sys; from modelcache.cli.main import main; "
        f"assert main(['--root', {str(tmp_path / 'root')!r}, 'pull', {uri!r}]) == 0; "
        "print([name for name in sys.modules if name in ('google.auth', 'fsspec', 'gcsfs', 'botocore', 'requests', 'google.cloud')])"
    )
    environ = {**os.environ, "STORAGE_EMULATOR_HOST": fake_gcs.endpoint.removeprefix("http://")}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
