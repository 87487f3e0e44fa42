"""Imports killed at random instants, and disks too small for imports and exports."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from modelcache.carry.exporting import Chosen, export
from modelcache.carry.importing import import_file
from modelcache.errors import NoSpace
from modelcache.patience import Cancellation
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.crash_bench import LATER_S, NO_LIMITS
from modelcache.testing.store_filling import fill, manifest_of
from modelcache.units import MIB
from tests.conftest import SmallDisk
from tests.faults.chance import seed_of, soak_rounds
from tests.faults.kills import COMMAND, DEADLINE_S, TWO_MODELS, killed_at_random

ROUNDS = 5
MODELS = {f"s3://models/{name}": files for name, files in TWO_MODELS.items()}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of two models that share a file."""
    directory = tmp_path_factory.mktemp("export")
    return exported(LocalStore(directory / "store", NO_LIMITS), directory / "models.tar")


def exported(store: LocalStore, file: Path) -> Path:
    for uri, files in MODELS.items():
        fill(store, files, uri=uri)
    chosen = [Chosen(ref.manifest, (ref,)) for ref in store.refs()]
    export(store, chosen, file, progress=None, cancel=Cancellation())
    return file


class Rounds:
    """Imports of one file into one store, killed."""

    def __init__(self, root: Path, file: Path, seed: int) -> None:
        self._root = root
        self._file = file
        self._random = random.Random(seed)
        self._store = LocalStore(root, NO_LIMITS)

    def play(self) -> int:
        """One round; whether the import was killed before its end."""
        was_killed = killed_at_random(self._start(), self._random, within_s=0.15, store=self._root)
        assert audit(self._root, Moment.CRASHED) == []
        shown = {ref.key.uri: ref.manifest for ref in self._store.refs() if self._store.snapshot(ref.manifest) is not None}
        assert shown.items() <= {uri: manifest_of(files).digest for uri, files in MODELS.items()}.items()
        report = import_file(self._store, self._file, progress=None, cancel=Cancellation())
        for imported in report.snapshots:
            (uri,) = imported.uris
            assert {str(path.relative_to(imported.snapshot.path)): path.read_bytes() for path in imported.snapshot.path.rglob("*.*")} == {
                path: data for path, data in MODELS[uri].items() if data
            }
        LocalStore(self._root, NO_LIMITS, clock=lambda: 4e9 + LATER_S).collect()
        assert audit(self._root, Moment.SETTLED) == []
        for info in self._store.list():
            self._store.evict(info.digest)
        return was_killed

    def _start(self) -> subprocess.Popen[str]:
        environ = {**os.environ, "MODELCACHE_ROOT": str(self._root), "HOME": str(self._root.parent)}
        return subprocess.Popen(
            [*COMMAND, "import", str(self._file)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


def test_imports_killed_at_random_instants(tmp_path: Path, file: Path, pytestconfig: pytest.Config) -> None:
    rounds = Rounds(tmp_path / "root", file, seed_of(pytestconfig))
    for _ in range(ROUNDS):
        rounds.play()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_imports_killed_at_very_many_random_instants(tmp_path: Path, file: Path, pytestconfig: pytest.Config) -> None:
    rounds = Rounds(tmp_path / "root", file, seed_of(pytestconfig))
    assert sum(rounds.play() for _ in range(soak_rounds(200))) > 0


def test_what_a_killed_import_wrote_is_not_written_again(tmp_path: Path, file: Path) -> None:
    """The ingest of an import that was killed is taken over: its blobs are linked."""
    store = LocalStore(tmp_path / "root", NO_LIMITS)
    script = f"""
import os, signal
from pathlib import Path
from modelcache.carry.importing import import_file
from modelcache.patience import Cancellation
from modelcache.store.store import LocalStore
from modelcache.testing.store_fixtures import NO_LIMITS

def told(done, total):
    if done > 25 * 1024 * 1024:
        os.kill(os.getpid(), signal.SIGKILL)

import_file(LocalStore(Path({str(store.root)!r}), NO_LIMITS), {str(file)!r}, progress=told, cancel=Cancellation())
"""
    died = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=DEADLINE_S)
    assert died.returncode == -9, died.stderr

    report = import_file(store, file, progress=None, cancel=Cancellation())

    assert report.reused_bytes >= 13 * MIB
    assert audit(store.root, Moment.SETTLED) == []


@pytest.mark.root
def test_an_import_that_doesn_t_fit_on_a_small_disk(small_disk: SmallDisk, file: Path) -> None:
    disk = small_disk(size_bytes=32 * MIB)
    store = LocalStore(disk / "root", NO_LIMITS)
    before = sorted(path.name for path in store.root.rglob("*"))

    with pytest.raises(NoSpace) as raised:
        import_file(store, file, progress=None, cancel=Cancellation())

    assert raised.value.needed_bytes > raised.value.available_bytes > 0
    assert sorted(path.name for path in store.root.rglob("*")) == before


@pytest.mark.root
def test_an_export_that_doesn_t_fit_on_a_small_disk(small_disk: SmallDisk, tmp_path: Path) -> None:
    disk = small_disk(size_bytes=32 * MIB)
    (disk / "models.tar").write_bytes(b"older")

    with pytest.raises(NoSpace) as raised:
        exported(LocalStore(tmp_path / "store", NO_LIMITS), disk / "models.tar")

    assert raised.value.needed_bytes > raised.value.available_bytes > 0
    assert {path.name: path.read_bytes() for path in disk.iterdir() if path.is_file()} == {"models.tar": b"older"}


@pytest.mark.root
def test_an_export_while_others_fill_the_disk(small_disk: SmallDisk, tmp_path: Path) -> None:
    disk = small_disk(size_bytes=56 * MIB)
    store = LocalStore(tmp_path / "store", NO_LIMITS)
    for uri, files in MODELS.items():
        fill(store, files, uri=uri)
    chosen = [Chosen(ref.manifest, (ref,)) for ref in store.refs()]

    def others_write(done: int, total: int) -> None:
        if not (disk / "others").exists():
            (disk / "others").write_bytes(bytes(30 * MIB))

    with pytest.raises(NoSpace):
        export(store, chosen, disk / "models.tar", progress=others_write, cancel=Cancellation())

    assert [path.name for path in disk.iterdir() if path.is_file()] == ["others"]
