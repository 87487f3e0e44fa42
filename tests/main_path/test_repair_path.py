"""A bit flipped in every kind of file of a store: found, and put right from a real S3 server and a real web server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from modelcache import Config, ModelCache
from modelcache.chunks import CHUNK_BYTES
from modelcache.errors import AccessDenied
from modelcache.sources.s3 import S3Options
from modelcache.testing.audit import Moment, audit
from modelcache.testing.crash import flip_bit
from modelcache.testing.servers import Nginx, SeaweedFS
from modelcache.testing.store_filling import digest_of
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import MIB

WEIGHTS = Random(7).randbytes(13 * MIB + 5)
DIGITS = digest_of(WEIGHTS).hex


@dataclass
class Pulled:
    """A cache with a model from a real server.

    Attributes:
        remove: takes the model away from the server.
    """

    cache: ModelCache
    uri: str
    path: Path
    remove: Callable[[], None]

    @property
    def root(self) -> Path:
        return self.cache.config.root

    def content(self) -> bytes:
        return self.path.read_bytes()


@pytest.fixture(params=["s3", "nginx"])
def pulled(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pulled]:
    config = Config.load(environ={}, root=tmp_path / "store", limits=NO_LIMITS)
    if request.param == "s3":
        server: SeaweedFS = request.getfixturevalue("seaweedfs")
        bucket: str = request.getfixturevalue("bucket")
        server.put(bucket, "llama/config.json", b"{}")
        server.put(bucket, "llama/model.safetensors", WEIGHTS)
        key = server.admin
        options = S3Options(endpoint=server.endpoint, access_key=key.access_key, secret_key=key.secret_key)
        config = Config.load(environ={}, root=config.root, s3=options, limits=NO_LIMITS)
        uri, name = f"s3://{bucket}/llama", "model.safetensors"

        def remove() -> None:
            server.put(bucket, "llama/model.safetensors", b"another version")
    else:
        web: Nginx = request.getfixturevalue("nginx")
        place = web.directory / f"repair-{tmp_path.name}.safetensors"
        place.write_bytes(WEIGHTS)
        uri, name = f"{web.endpoint}/{place.name}", place.name

        def remove() -> None:
            place.unlink()

    with ModelCache(config=config) as cache:
        yield Pulled(cache, uri, cache.ensure(uri).path / name, remove)


def of_blob(root: Path) -> tuple[Path, int]:
    return root / "blobs" / "sha256" / DIGITS[:2] / DIGITS, 2 * CHUNK_BYTES + 5


def of_table(root: Path) -> tuple[Path, int]:
    return root / "chunks" / "sha256" / DIGITS[:2] / DIGITS, 40


def of_manifest(root: Path) -> tuple[Path, int]:
    (path,) = (root / "manifests").iterdir()
    return path, path.stat().st_size // 2


def of_ref(root: Path) -> tuple[Path, int]:
    (path,) = (root / "refs").iterdir()
    return path, path.read_bytes().index(b'"validator"') + 14


FETCHED: dict[Callable[[Path], tuple[Path, int]], int] = {of_blob: CHUNK_BYTES, of_table: 0, of_manifest: 0, of_ref: 0}


@pytest.mark.parametrize(("place", "is_held"), [*((place, False) for place in FETCHED), (of_blob, True)])
def test_a_flipped_bit_is_found_and_put_right(pulled: Pulled, place: Callable[[Path], tuple[Path, int]], is_held: bool) -> None:
    path, at = place(pulled.root)
    sound = path.read_bytes()
    refs = [ref.files for ref in pulled.cache.refs(pulled.uri)]
    if is_held:
        pulled.cache.pin(pulled.uri)
    flip_bit(path, at)
    report = pulled.cache.repair()
    (damage,) = report.verified.damages
    assert damage.path == path
    assert (report.unrepaired, report.fetched_bytes) == ((), FETCHED[place])
    if place is not of_ref:
        assert path.read_bytes() == sound, "but for the time of a check, every file is what it was"
    assert [ref.files for ref in pulled.cache.refs(pulled.uri)] == refs
    assert pulled.content() == WEIGHTS
    assert pulled.cache.verify().damages == ()
    pulled.cache.unpin(pulled.uri)
    pulled.cache.collect()
    assert audit(pulled.root, Moment.SETTLED, quarantined={DIGITS}) == []


def test_an_origin_that_has_it_no_more(pulled: Pulled) -> None:
    pulled.remove()
    flip_bit(*of_blob(pulled.root))
    (left,) = pulled.cache.repair().unrepaired
    assert left.digest.hex == DIGITS
    assert left.uris == (pulled.uri,)
    assert not pulled.path.exists()


def test_a_server_that_refuses_is_named(seaweedfs: SeaweedFS, bucket: str, tmp_path: Path) -> None:
    """What was read with one credential is not repaired with none."""
    seaweedfs.put(bucket, "llama/model.safetensors", WEIGHTS)
    key = seaweedfs.admin
    options = S3Options(endpoint=seaweedfs.endpoint, access_key=key.access_key, secret_key=key.secret_key)
    with ModelCache(config=Config.load(environ={}, root=tmp_path / "store", s3=options, limits=NO_LIMITS)) as cache:
        cache.ensure(f"s3://{bucket}/llama")
    flip_bit(*of_blob(tmp_path / "store"))
    anonymous = S3Options(endpoint=seaweedfs.endpoint, anonymous=True)
    with ModelCache(config=Config.load(environ={}, root=tmp_path / "store", s3=anonymous, limits=NO_LIMITS)) as cache:
        (left,) = cache.repair().unrepaired
        assert bucket in left.why
        with pytest.raises(AccessDenied):
            cache.ensure(f"s3://{bucket}/llama")
    with ModelCache(config=Config.load(environ={}, root=tmp_path / "store", s3=options, limits=NO_LIMITS)) as cache:
        assert len(cache.repair(f"s3://{bucket}/llama").restored) == 1
