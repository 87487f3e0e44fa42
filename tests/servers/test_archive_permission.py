"""Archives in a store that several callers share: a right to the archive is a right to what is in it, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache import Config, ModelCache, Progress, Refresh
from modelcache.errors import AccessDenied
from modelcache.mirrors import Mirror
from modelcache.permission import Caller
from modelcache.sources.s3 import S3Options
from modelcache.testing.archives import Written, contents, tar_of
from modelcache.testing.audit import Moment, audit
from modelcache.testing.servers import Identity, SeaweedFS
from modelcache.testing.store_fixtures import NO_LIMITS

FILES = {"config.json": b"{}", "w.bin": b"w" * 100_000}


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ModelCache]:
    with ModelCache(config=Config.load(environ={}, root=tmp_path / "store", limits=NO_LIMITS)) as cache:
        yield cache
    assert audit(tmp_path / "store", Moment.CRASHED) == []


def caller(cache: ModelCache, server: SeaweedFS, who: Identity) -> Caller:
    options = S3Options(endpoint=server.endpoint, access_key=who.access_key, secret_key=who.secret_key)
    return Caller(f"team-{who.name}", "default", who.access_key.encode(), replace(cache.config, s3=options))


def test_whoever_may_read_the_archive_gets_its_members_and_a_lister_nothing(seaweedfs: SeaweedFS, bucket: str, cache: ModelCache) -> None:
    archive = tar_of([Written(path, data) for path, data in FILES.items()])
    seaweedfs.put(bucket, "m.tar", archive)
    uri = f"s3://{bucket}/m.tar"
    seen: list[Progress] = []
    first = cache.ensure(uri, caller=caller(cache, seaweedfs, seaweedfs.admin), progress=seen.append)
    assert contents(first.path) == FILES
    assert seen[-1].bytes_fetched == len(archive)
    for refresh in (Refresh.AUTO, Refresh.ALWAYS, Refresh.NEVER):
        with pytest.raises(AccessDenied):
            cache.ensure(uri, refresh=refresh, caller=caller(cache, seaweedfs, seaweedfs.lister))
    second = cache.ensure(uri, caller=caller(cache, seaweedfs, seaweedfs.reader), progress=seen.append)
    assert second.digest == first.digest
    assert (seen[-1].hit, seen[-1].bytes_fetched) == (True, 0)  # a byte of the archive proved it
    again = cache.ensure(uri, refresh=Refresh.ALWAYS, caller=caller(cache, seaweedfs, seaweedfs.reader))
    assert again.digest == first.digest


def test_a_mirror_gives_a_caller_no_identity_of_the_node(
    seaweedfs: SeaweedFS, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by its profile, nor by `anonymous = false`, which lets the SDK find what the process has."""
    seaweedfs.put(bucket, "o/m/config.json", b"{}")
    keys = seaweedfs.reader
    (tmp_path / "aws").write_text(f"[node]\naws_access_key_id = {keys.access_key}\naws_secret_access_key = {keys.secret_key}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys.secret_key)
    mirrors = (
        Mirror("hf://", f"s3://{bucket}", endpoint=seaweedfs.endpoint, profile="node"),
        Mirror("gs://", f"s3://{bucket}", endpoint=seaweedfs.endpoint, region="us-east-1", anonymous=False),
        Mirror("hf://local", f"file://{tmp_path}"),
    )
    with ModelCache(config=Config.load(environ={}, root=tmp_path / "store", mirrors=mirrors, limits=NO_LIMITS)) as cache:
        allowed, stranger = (caller(cache, seaweedfs, who) for who in (seaweedfs.reader, seaweedfs.lister))
        nobody = Caller("team-n", "default", b"", replace(cache.config, mirrors=(replace(mirrors[1], prefix="https://"),)))
        for uri in ("hf://o/m", "gs://o/m"):
            for who in (stranger, nobody):
                with pytest.raises(AccessDenied):
                    cache.ensure(uri, caller=who)
            assert contents(cache.ensure(uri, caller=allowed).path) == {"config.json": b"{}"}
        with pytest.raises(AccessDenied, match="file://"):
            cache.ensure("hf://local/m", caller=allowed)
