"""Archives and claims keep the contract of sources, and what is theirs besides."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from modelcache.abc.source import Source
from modelcache.errors import BadConfig, NotFound, SourceChanged, UnsafePath
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.archive import DEFAULT_LIMITS, ArchiveSource
from modelcache.sources.claims import ClaimMounts, ClaimSource
from modelcache.sources.local import LocalSource
from modelcache.sources.retrying import RetryingSource
from modelcache.testing.archives import Written, bring_from, tar_of, write_tree, zip_of
from modelcache.testing.faulted_contract import AT_ONCE, FaultedContract
from modelcache.testing.faulty_source import AT_OPEN, MIDWAY, FaultySource
from modelcache.testing.source_contract import LARGE, OTHER, SMALL, Place, SourceContract, listing, put_and_list, read, read_on, whole
from modelcache.units import MIB
from modelcache.uri import StorageUri
from tests.contract.test_source_contract import Directory


class Packed:
    """A directory of archives: one of each file alone, and one of all of them."""

    lists_many = True
    unsafe_names: tuple[str, ...] = ("new\nline", "../up", "/etc/passwd", "a//b")

    def __init__(self, root: Path, ending: str, files: Source | None = None) -> None:
        files = files or LocalSource()
        self.source: Source = ArchiveSource(files, bring_from(files), lambda revision, listing, cancel: None, DEFAULT_LIMITS)
        self._root = root
        self._ending = ending
        self._files: dict[str, bytes] = {}

    def put(self, path: str, data: bytes) -> None:
        self._files[path] = data
        place = self._place(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        name = path.removeprefix("unsafe/") if path.startswith("unsafe/") else path.rpartition("/")[2]
        place.write_bytes(self._packed({name: data}))

    overwrite = put

    def remove(self, path: str) -> None:
        del self._files[path]
        self._place(path).unlink()

    def uri(self, path: str = "") -> StorageUri:
        if path == "unsafe":
            (self._root / f"all{self._ending}").write_bytes(
                self._packed({name.partition("/")[2]: data for name, data in self._files.items()})
            )
            path = "all"
        elif not path:
            (self._root / f"all{self._ending}").write_bytes(self._packed(self._files))
            path = "all"
        return StorageUri("file", "", str(self._place(path)))

    def _place(self, path: str) -> Path:
        return self._root / (quote(path, safe="" if path.startswith("unsafe/") else "/~ ") + self._ending)

    def _packed(self, files: dict[str, bytes]) -> bytes:
        entries = [Written(path, data) for path, data in files.items()]
        if self._ending == ".zip":
            return zip_of(entries, method=zipfile.ZIP_DEFLATED, level=0)
        tar = tar_of(entries)
        return gzip.compress(tar, compresslevel=0) if self._ending == ".tgz" else tar


class ArchiveContract(SourceContract):
    """What was listed stays readable: the archive is at hand, whatever becomes of it at its origin. Another listing ends that."""

    ending: str

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Packed(tmp_path, self.ending)

    def test_a_file_replaced_before_it_is_opened_has_changed(self, place: Place) -> None:
        file = put_and_list(place, "f", SMALL)
        place.put("f", SMALL[::-1])
        assert read(place.source, file) == SMALL
        assert read(place.source, listing(place, "f").files[0]) == SMALL[::-1]
        with pytest.raises(SourceChanged) as caught:
            read(place.source, file)
        assert caught.value.retryable

    def test_a_file_removed_before_it_is_opened_has_changed(self, place: Place) -> None:
        file = put_and_list(place, "f", SMALL)
        place.remove("f")
        assert read(place.source, file) == SMALL

    @pytest.mark.parametrize("in_place", [False, True])
    def test_a_file_replaced_while_it_is_read_is_never_a_mixture(self, place: Place, in_place: bool) -> None:
        file = put_and_list(place, "f", LARGE)
        body = place.source.open(file, whole(file), Cancellation())
        data = read_on(body, MIB)
        (place.overwrite if in_place else place.put)("f", OTHER)
        listing(place, "f")
        assert data + read_on(body, len(LARGE) + 1) == LARGE
        body.close()
        with pytest.raises(SourceChanged):
            read(place.source, file, ByteRange(0, 10) if file.resumable else None)


class TestTar(ArchiveContract):
    ending = ".tar"


class FaultedArchive(FaultedContract, ArchiveContract):
    """The faults are around what the archive itself is read from: so it is under the cache, too."""

    @pytest.fixture
    def faults(self) -> FaultySource:
        return FaultySource(LocalSource(), seed=7)

    @pytest.fixture
    def place(self, tmp_path: Path, faults: FaultySource) -> Place:
        return Packed(tmp_path, self.ending, RetryingSource(faults, AT_ONCE))

    def test_every_fault_strikes_once_and_no_byte_is_read_twice(self, place: Place, faults: FaultySource) -> None:
        file = put_and_list(place, "f", SMALL)
        assert read(place.source, file) == SMALL
        assert {fault: faults.books.struck[fault] for fault in (*AT_OPEN, *MIDWAY)} == dict.fromkeys((*AT_OPEN, *MIDWAY), 1)
        assert faults.books.bytes == {f"f{self.ending}": Path(place.uri("f").path).stat().st_size}
        assert faults.books.open_bodies == 0

    def sizes_bytes(self, place: Place) -> Mapping[str, int]:
        return {f"all{self.ending}": Path(place.uri().path).stat().st_size}


class TestTarFaulted(FaultedArchive):
    ending = ".tar"


class TestTgz(ArchiveContract):
    ending = ".tgz"


class TestTgzFaulted(FaultedArchive):
    ending = ".tgz"


class TestZip(ArchiveContract):
    ending = ".zip"


class TestZipFaulted(FaultedArchive):
    ending = ".zip"


class ClaimDirectory(Directory):
    """The same directory, mounted as a claim."""

    def uri(self, path: str = "") -> StorageUri:
        return StorageUri("pvc", "models", path)


class TestClaim(SourceContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        mount = tmp_path / "volume"
        mount.mkdir()
        return ClaimDirectory(mount, ClaimSource("models", ClaimMounts(claims={"models": mount})))


class TestClaimFaulted(FaultedContract, TestClaim):
    pass


# -- claims -------------------------------------------------------------------------------------------------------------


def claim_files(mounts: ClaimMounts, path: str = "") -> list[str]:
    source = ClaimSource("models", mounts)
    return [file.path for file in source.list(StorageUri("pvc", "models", path), Cancellation()).files]


def test_a_claim_is_found_by_its_name_or_its_table(tmp_path: Path) -> None:
    write_tree(tmp_path, {"models/a": b"1", "elsewhere/b": b"2", "models/lost+found/x": b"not the model's"})
    assert claim_files(ClaimMounts(root=tmp_path)) == ["a"]
    assert claim_files(ClaimMounts(root=tmp_path, claims={"models": tmp_path / "elsewhere"})) == ["b"]
    assert str(ClaimSource("models", ClaimMounts(root=tmp_path)).origin) == "pvc://models"
    with pytest.raises(BadConfig) as caught:
        ClaimSource("models", ClaimMounts())
    assert "MODELCACHE_PVC_ROOT" in str(caught.value.hint)
    with pytest.raises(NotFound, match="not here") as missing:
        claim_files(ClaimMounts(claims={"models": tmp_path / "unmounted"}))
    assert str(tmp_path) in str(missing.value.hint)


@pytest.mark.parametrize("kind", ["file", "directory", "start"])
def test_no_link_leads_out_of_a_claim(tmp_path: Path, kind: str) -> None:
    write_tree(tmp_path, {"secret/key": b"not yours", "volume/m/config.json": b"{}", "volume/blobs/w": b"weights"})
    volume = tmp_path / "volume"
    (volume / "m/w.bin").symlink_to("../blobs/w")
    (volume / "m/all").symlink_to(volume / "blobs")
    mounts = ClaimMounts(claims={"models": volume})
    assert claim_files(mounts, "m") == ["all/w", "config.json", "w.bin"]
    if kind == "file":
        (volume / "m/out").symlink_to("../../secret/key")
    elif kind == "directory":
        (volume / "m/out").symlink_to(tmp_path / "secret")
    else:
        (volume / "out").symlink_to(tmp_path / "secret")
    path = "out" if kind == "start" else "m"
    with pytest.raises(UnsafePath, match="out of the volume"):
        claim_files(mounts, path)
    if kind != "start":
        source = ClaimSource("models", mounts)
        assert len(source.list(StorageUri("pvc", "models", "m", exclude=("out*",)), Cancellation()).files) == 3


def test_a_link_that_is_moved_out_of_a_claim_after_it_was_listed_is_not_read(tmp_path: Path) -> None:
    write_tree(tmp_path, {"secret": b"weights", "volume/blob": b"weights"})
    link = tmp_path / "volume/w"
    link.symlink_to("blob")
    source = ClaimSource("models", ClaimMounts(claims={"models": tmp_path / "volume"}))
    [file] = source.list(StorageUri("pvc", "models", "w"), Cancellation()).files
    link.unlink()
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(SourceChanged):
        read(source, file)
