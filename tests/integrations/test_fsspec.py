"""fsspec reads through the cache: from a real, authenticated S3 server, in fsspec's own ways."""

from __future__ import annotations

import io
import json
import mmap
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from modelcache import Config, ModelCache
from modelcache.digest import sha256
from modelcache.errors import BadConfig, InUse, OriginUnreachable
from modelcache.integrations.fsspec import ModelCacheFileSystem
from modelcache.sources.s3 import S3Options, S3Source
from modelcache.testing.servers import SeaweedFS
from modelcache.testing.store_filling import content, digest_of
from modelcache.testing.store_fixtures import NO_LIMITS

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer/vocabulary.json": content(3000, seed=1),
    "model.safetensors": content(5_000_000, seed=2),
}


@pytest.fixture(autouse=True)
def no_instances(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MODELCACHE_RETRY_DEADLINE_S", "0.01")
    yield
    ModelCacheFileSystem.clear_instance_cache()


@pytest.fixture
def options(seaweedfs: SeaweedFS, tmp_path: Path) -> dict[str, Any]:
    """What fsspec passes on, to the cache and to the target."""
    key = seaweedfs.reader
    s3 = {"key": key.access_key, "secret": key.secret_key, "endpoint_url": seaweedfs.endpoint, "default_block_size": 4096}
    return {"modelcache": {"root": str(tmp_path / "root")}, "s3": s3 | {"client_kwargs": {"region_name": "us-east-1"}}}


@pytest.fixture
def model(seaweedfs: SeaweedFS, bucket: str) -> str:
    """Bucket and prefix of a model."""
    for path, data in FILES.items():
        seaweedfs.put(bucket, f"llama/{path}", data)
    return f"{bucket}/llama"


@pytest.fixture
def fs(model: str, options: dict[str, Any]) -> ModelCacheFileSystem:
    found, root = fsspec.url_to_fs(f"modelcache::s3://{model}", **options)
    assert root == model
    assert isinstance(found, ModelCacheFileSystem)
    return found


@pytest.fixture
def silent_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks it is told that it isn't there."""

    def unreachable(*arguments: object) -> None:
        raise OriginUnreachable("no route to it")

    monkeypatch.setattr(S3Source, "list", unreachable)
    monkeypatch.setattr(S3Source, "open", unreachable)


def test_a_file_is_fetched_alone_and_opened_where_it_is(fs: ModelCacheFileSystem, model: str, options: dict[str, Any]) -> None:
    with fsspec.open(f"modelcache::s3://{model}/model.safetensors", **options) as file:
        assert file.read() == FILES["model.safetensors"]
        file.seek(1000)
        assert file.read(8) == FILES["model.safetensors"][1000:1008]
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[-5:] == FILES["model.safetensors"][-5:]

    assert [ref.key.uri for info in fs.cache.list() for ref in info.refs] == [f"s3://{model}/model.safetensors"]


def test_text_and_paths_and_whole_uris(fs: ModelCacheFileSystem, model: str, options: dict[str, Any]) -> None:
    with fsspec.open(f"modelcache::s3://{model}/config.json", "rt", **options) as file:
        assert json.load(file) == {"model_type": "llama"}
    path = fsspec.open_local(f"modelcache::s3://{model}/config.json", **options)
    assert Path(str(path)).read_bytes() == FILES["config.json"]
    plain = fsspec.filesystem("modelcache", target_protocol=None, root=options["modelcache"]["root"], refresh="never")
    plain._config = fs._config
    assert plain.cat(f"s3://{model}/config.json") == FILES["config.json"]
    assert plain.info(f"s3://{model}/config.json")["name"] == f"s3://{model}/config.json"


@pytest.mark.usefixtures("silent_origin")
def test_a_file_that_nobody_has_is_told_as_it_is(fs: ModelCacheFileSystem, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OriginUnreachable):
        fs.cat(f"{model}/config.json")


def test_a_pulled_model_serves_all_of_its_files(fs: ModelCacheFileSystem, model: str, request: pytest.FixtureRequest) -> None:
    snapshot = fs.cache.ensure(f"s3://{model}")
    request.getfixturevalue("silent_origin")

    assert {path.removeprefix(f"{model}/"): fs.cat(path) for path in fs.find(model)} == FILES
    with fs.open(f"{model}/tokenizer/vocabulary.json") as file:
        assert file.name == str(snapshot.path / "tokenizer/vocabulary.json")
        with pytest.raises(InUse):
            fs.cache.evict(str(snapshot.digest))
    assert fs.cache.evict(str(snapshot.digest)).digest == snapshot.digest


def test_looking_fetches_nothing(fs: ModelCacheFileSystem, model: str, tmp_path: Path) -> None:
    bucket = model.partition("/")[0]

    assert fs.ls(model, detail=False) == [f"{model}/config.json", f"{model}/model.safetensors", f"{model}/tokenizer"]
    assert fs.ls(f"{model}/tokenizer", detail=False) == [f"{model}/tokenizer/vocabulary.json"]
    assert fs.find(model) == sorted(f"{model}/{path}" for path in FILES)
    assert fs.find(model, maxdepth=1, withdirs=True) == fs.ls(model, detail=False)
    assert fs.glob(f"{model}/*.json") == [f"{model}/config.json"]
    assert fs.glob(f"{bucket}/**/vocabulary.json") == [f"{model}/tokenizer/vocabulary.json"]
    assert {top: (dirs, files) for top, dirs, files in fs.walk(model)} == {
        model: (["tokenizer"], ["config.json", "model.safetensors"]),
        f"{model}/tokenizer": ([], ["vocabulary.json"]),
    }
    assert (fs.size(f"{model}/model.safetensors"), fs.isdir(model), fs.isfile(f"{model}/config.json")) == (5_000_000, True, True)
    assert (fs.exists(f"{model}/none"), fs.isdir(f"{model}/none")) == (False, False)
    assert fs.du(model) == sum(map(len, FILES.values()))
    assert fs.cache.list() == []


def test_copies_out(fs: ModelCacheFileSystem, model: str, tmp_path: Path) -> None:
    fs.get(model, str(tmp_path / "copy"), recursive=True)

    copied = {str(path.relative_to(tmp_path / "copy")): path.read_bytes() for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert copied == FILES
    assert fs.cat_file(f"{model}/config.json", start=2, end=-1) == FILES["config.json"][2:-1]
    digest = digest_of(FILES["config.json"])
    fs.cache.ensure(f"s3://{model}")
    fs.invalidate_cache()
    assert sha256(fs.ukey(f"{model}/config.json")) == digest


@pytest.mark.usefixtures("silent_origin")
def test_writing_is_refused(fs: ModelCacheFileSystem, model: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    path = f"{model}/new"
    writes: tuple[Callable[[], object], ...] = (
        lambda: fs.open(path, "wb"), lambda: fs.open(path, "ab"), lambda: fs.open(path, "wt"), lambda: fs.pipe(path, b"x"),
        lambda: fs.pipe_file(path, b"x"), lambda: fs.put(str(tmp_path / "file"), path), lambda: fs.touch(path), lambda: fs.mkdir(path),
        lambda: fs.makedirs(path), lambda: fs.rmdir(path), lambda: fs.rm(path), lambda: fs.rm_file(path), lambda: fs.mv(path, path),
        lambda: fs.cp_file(path, path), lambda: fs.copy(path, path), lambda: fs.write_text(path, "x"),
    )  # fmt: skip
    for write in writes:
        with pytest.raises(OSError, match="read-only"):
            write()


def test_errors_are_those_of_files(fs: ModelCacheFileSystem, model: str, options: dict[str, Any], seaweedfs: SeaweedFS) -> None:
    with pytest.raises(FileNotFoundError):
        fs.open(f"{model}/none")
    with pytest.raises(IsADirectoryError):
        fs.open(model)
    with pytest.raises(BadConfig, match="version_id"):
        fs.open(f"{model}/config.json", version_id="1")
    stranger = options["s3"] | {"secret": "not-the-secret"}
    with pytest.raises(PermissionError) as raised:
        fsspec.open(f"modelcache::s3://{model}/config.json", **options | {"s3": stranger}).open()
    assert "not-the-secret" not in f"{raised.value} {raised.value.__cause__}"


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"requester_pays": True}, "requester_pays"),
        ({"client_kwargs": {"use_ssl": False}}, "client_kwargs.use_ssl"),
        ({"config_kwargs": {"s3": {"payload_signing_enabled": 1}}}, "config_kwargs.s3.payload_signing_enabled"),
    ],
)
def test_options_that_can_t_be_honoured_are_refused(model: str, options: dict[str, Any], extra: dict[str, Any], named: str) -> None:
    with pytest.raises(BadConfig) as raised:
        fsspec.url_to_fs(f"modelcache::s3://{model}", **options | {"s3": options["s3"] | extra})

    assert raised.value.got == named
    with pytest.raises(BadConfig):
        fsspec.filesystem("modelcache", cache_storage="x")


@pytest.mark.parametrize("name", ["a#b.txt", "a?b", "a#include=x", "ü %41.txt", "end ", "a?b\u3000"])
def test_a_name_is_a_name(seaweedfs: SeaweedFS, bucket: str, options: dict[str, Any], name: str) -> None:
    seaweedfs.put(bucket, f"odd/{name}", name.encode())
    found, root = fsspec.url_to_fs(f"modelcache::s3://{bucket}/odd", **options)

    assert [found.cat(path) for path in found.ls(root, detail=False)] == [name.encode()]


def test_an_archive_is_a_file_and_fsspec_looks_into_it(seaweedfs: SeaweedFS, bucket: str, options: dict[str, Any]) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("inside/member.txt", "inside")
    seaweedfs.put(bucket, "packed/a.zip", packed.getvalue())

    found, root = fsspec.url_to_fs(f"modelcache::s3://{bucket}/packed", **options)
    assert {path: found.cat(path) for path in found.find(root)} == {f"{root}/a.zip": packed.getvalue()}
    with fsspec.open(f"zip://inside/member.txt::modelcache::s3://{bucket}/packed/a.zip", **options) as file:
        assert file.read() == b"inside"


def test_the_last_version_is_opened_where_the_origin_can_t_be_asked(
    fs: ModelCacheFileSystem, model: str, options: dict[str, Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs.cache.ensure(f"s3://{model}")
    monkeypatch.setenv("MODELCACHE_REFRESH_S", "0")
    request.getfixturevalue("silent_origin")
    stale, _ = fsspec.url_to_fs(f"modelcache::s3://{model}", **options, skip_instance_cache=True)

    assert stale.cat(f"{model}/config.json") == FILES["config.json"]
    assert stale.find(model) == sorted(f"{model}/{path}" for path in FILES)


def test_instances_share_a_cache_and_travel(fs: ModelCacheFileSystem, model: str, options: dict[str, Any]) -> None:
    again, _ = fsspec.url_to_fs(f"modelcache::s3://{model}", **options, skip_instance_cache=True)
    travelled = pickle.loads(pickle.dumps(fs))

    assert again is not fs
    assert again.cache is fs.cache is travelled.cache
    assert travelled.cat(f"{model}/config.json") == FILES["config.json"]
    assert options["s3"]["secret"] not in repr(fs)


def test_a_forked_process_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    script = f"""
        import os, fsspec
        fs = fsspec.filesystem("modelcache", root={str(tmp_path / "root")!r})
        path = "file://{tmp_path}/file"
        assert fs.cat(path) == b"bytes"
        parents = fs.cache
        child = os.fork()
        if child == 0:
            os._exit(0 if fs.cat(path) == b"bytes" and fs.cache is not parents else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert fs.cache is parents and fs.cat(path) == b"bytes"
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)], check=True, timeout=60, env=dict(os.environ))


def test_modelcache_does_not_need_fsspec() -> None:
    script = "import sys, modelcache, modelcache.cli.main; sys.exit('fsspec' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_same_settings_in_python_lead_to_the_same_model(
    fs: ModelCacheFileSystem, model: str, seaweedfs: SeaweedFS, tmp_path: Path
) -> None:
    """A pull of the library or the command line, and files through fsspec, are of one store."""
    s3 = S3Options(endpoint=seaweedfs.endpoint, access_key=seaweedfs.reader.access_key, secret_key=seaweedfs.reader.secret_key)
    with ModelCache(config=Config.load(environ={}, root=tmp_path / "root", s3=s3, limits=NO_LIMITS)) as cache:
        snapshot = cache.ensure(f"s3://{model}")
    with fs.open(f"{model}/config.json") as file:
        assert Path(file.name).parent == snapshot.path
