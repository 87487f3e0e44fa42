"""`modelcache pull` killed at random instants, several at once, while others evict: no wrong byte, little fetched again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from modelcache.abc.ingest import IngestFile
from modelcache.chunks import CHUNK_BYTES, chunk_count, chunk_range
from modelcache.errors import InUse, NotCached
from modelcache.store.journal import Remembered, decode_journal, file_key
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.crash_bench import LATER_S, NO_LIMITS
from modelcache.testing.servers import SeaweedFS
from tests.faults.chance import seed_of, soak_rounds
from tests.faults.kills import COMMAND, DEADLINE_S, TWO_MODELS, killed_at_random

KILLS = 4
AT_ONCE = (3,)
AT_ONCE_IN_SOAK = (2, 8)
"""Pulls at once, in turn. What two and eight do at any instant is in `test_crash_flights`, whose processes begin in no time."""
WORKERS = 2


@dataclass(frozen=True)
class Origin:
    """Where the models are: name → URI, and what a process needs to read them."""

    uris: Mapping[str, str]
    arguments: tuple[str, ...]
    environ: Mapping[str, str]


@pytest.fixture
def origin_on_disk(tmp_path: Path) -> Origin:
    for name, files in TWO_MODELS.items():
        for path, data in files.items():
            target = tmp_path / "origin" / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return Origin({name: f"file://{tmp_path}/origin/{name}" for name in TWO_MODELS}, (), {})


@pytest.fixture
def origin_on_s3(seaweedfs: SeaweedFS, bucket: str) -> Origin:
    for name, files in TWO_MODELS.items():
        for path, data in files.items():
            seaweedfs.put(bucket, f"{name}/{path}", data)
    keys = {"AWS_ACCESS_KEY_ID": seaweedfs.reader.access_key, "AWS_SECRET_ACCESS_KEY": seaweedfs.reader.secret_key}
    arguments = ("--endpoint", seaweedfs.endpoint, "--region", "us-east-1", "--path-style")
    return Origin({name: f"s3://{bucket}/{name}" for name in TWO_MODELS}, arguments, keys)


class Rounds:
    """Rounds of kills on one store."""

    def __init__(self, root: Path, origin: Origin, at_once: tuple[int, ...], seed: int) -> None:
        self._root = root
        self._origin = origin
        self._random = random.Random(seed)
        self._store = LocalStore(root, NO_LIMITS)
        self._processes = cycle(at_once)

    def play(self) -> int:
        """One round; how many pulls were killed before their end."""
        if self._random.random() < 0.5:
            self._collect()  # what rounds before have left
        fresh = not any((self._root / "ingest").iterdir())
        names = [self._random.choice(sorted(TWO_MODELS)) for _ in range(next(self._processes))]
        with self._evictions():
            pulls = [self._pull(name) for name in names]
            killed = sum([self._kill(pull) for pull in pulls])
        assert audit(self._root, Moment.CRASHED) == []
        for name in sorted(TWO_MODELS):
            self._finish(name, kills=len(names) if fresh else None)
        self._remove_some()
        return killed

    def settle(self) -> None:
        for name in sorted(TWO_MODELS):
            self._finish(name, kills=None)
        self._collect()
        assert audit(self._root, Moment.SETTLED) == []

    def _pull(self, name: str) -> subprocess.Popen[str]:
        command = [*COMMAND, "pull", *self._origin.arguments, self._origin.uris[name]]
        settings = {"MODELCACHE_ROOT": str(self._root), "MODELCACHE_REQUESTS": str(WORKERS), "HOME": str(self._root.parent)}
        environ = {**os.environ, **settings, **self._origin.environ}
        return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def _kill(self, pull: subprocess.Popen[str]) -> bool:
        """As a rule after somebody has begun to write, and sometimes long before."""
        return killed_at_random(pull, self._random, within_s=0.2, store=self._root if self._random.random() < 0.9 else None)

    @contextmanager
    def _evictions(self) -> Iterator[None]:
        """Another process, as far as locks and files can tell: a store of its own, that evicts and collects."""
        over = threading.Event()
        chance = random.Random(self._random.random())
        failures: list[BaseException] = []

        def evict() -> None:
            store = LocalStore(self._root, NO_LIMITS)
            try:
                while not over.wait(0.01):
                    for info in store.list():
                        with suppress(InUse, NotCached):
                            if chance.random() < 0.2:
                                store.evict(info.digest)
                    store.collect()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=evict)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        assert failures == []

    def _remove_some(self) -> None:
        for info in self._store.list():
            if self._random.random() < 0.7:
                self._store.evict(info.digest)

    # -- what is left, and what it saves ------------------------------------------------------------------------------

    def _collect(self) -> None:
        LocalStore(self._root, NO_LIMITS, clock=lambda: 4e9 + LATER_S).collect()

    def _finish(self, name: str, *, kills: int | None) -> None:
        """`kills`: since there was no ingest; None: not known. Who is killed may have taken over what the one before had left."""
        files = TWO_MODELS[name]
        kept_bytes, lost_chunks = self._kept(name)
        assert kills is None or lost_chunks <= WORKERS * kills, "more than a chunk of each worker was written and not marked"
        pull = self._pull(name)
        shown, errors = pull.communicate(timeout=DEADLINE_S)
        assert pull.returncode == 0, errors
        [snapshot] = json.loads(shown)["snapshots"]
        assert snapshot["fetched_bytes"] <= sum(map(len, files.values())) - kept_bytes, "what was kept was fetched again"
        top = Path(snapshot["path"])
        assert {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()} == files

    def _kept(self, name: str) -> tuple[int, int]:
        """Bytes that the next pull of this model need not fetch, as the disk and the journal say; chunks right but not marked."""
        for ingest in sorted((self._root / "ingest").iterdir()):
            plan = self._plan(ingest)
            if plan is not None and plan["uri"] == self._origin.uris[name]:
                return self._left(ingest, plan, TWO_MODELS[name])
        return 0, 0

    @staticmethod
    def _plan(ingest: Path) -> dict[str, Any] | None:
        try:
            plan: dict[str, Any] = json.loads((ingest / "plan.json").read_bytes())
        except FileNotFoundError:
            return None
        return plan

    def _left(self, ingest: Path, plan: dict[str, Any], files: Mapping[str, bytes]) -> tuple[int, int]:
        remembered = decode_journal((ingest / "journal").read_bytes())
        kept = lost = 0
        for item in plan["files"]:
            data = files[item["path"]]
            said = remembered.get(file_key(IngestFile(item["path"], item["size_bytes"], item["version"], None)), Remembered())
            if said.sha256 is not None and self._store.has_blob(said.sha256):
                kept += len(data)
                continue
            place = ingest / "tree" / item["path"]
            if place.exists() and place.stat().st_nlink > 1:
                continue  # linked to a blob that was here when the pull began: nobody wrote it, so nothing is marked
            written = place.read_bytes() if place.exists() else b""
            if chunk_count(len(data)) == 1:
                continue  # from S3 it is not gone on with: what was stated of it comes with its bytes
            spans = [chunk_range(chunk, len(data)) for chunk in range(chunk_count(len(data)))]
            right = {chunk for chunk, at in enumerate(spans) if written[at.start : at.stop] == data[at.start : at.stop]}
            kept += sum(spans[chunk].size_bytes for chunk in right & said.marks.keys())
            lost += len(right - said.marks.keys())
        return kept, lost


Play = Callable[[Origin, tuple[int, ...], int], None]


@pytest.fixture
def play(tmp_path: Path, pytestconfig: pytest.Config) -> Play:
    def rounds(origin: Origin, at_once: tuple[int, ...], count: int) -> None:
        rounds = Rounds(tmp_path / "root", origin, at_once, seed_of(pytestconfig))
        killed = played = 0
        while killed < count and played < 5 * count:  # On a busy machine most pulls may be through before their instant.
            killed += rounds.play()
            played += 1
        print(f"{killed} pulls killed in {played} rounds")
        assert killed, "nothing was killed: the instants are wrong"
        rounds.settle()

    return rounds


@pytest.mark.parametrize("origin", ["origin_on_disk", "origin_on_s3"])
def test_pulls_killed_at_random_instants(play: Play, origin: str, request: pytest.FixtureRequest) -> None:
    assert len(TWO_MODELS["one"]["w.safetensors"]) > 4 * CHUNK_BYTES
    play(request.getfixturevalue(origin), AT_ONCE, KILLS)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("origin", ["origin_on_disk", "origin_on_s3"])
def test_pulls_killed_at_hundreds_of_random_instants(play: Play, origin: str, request: pytest.FixtureRequest) -> None:
    play(request.getfixturevalue(origin), AT_ONCE_IN_SOAK, soak_rounds(300))
