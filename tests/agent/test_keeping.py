"""What an agent says of the models that an agent before it has brought."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from daemonset.keeping import Keeper
from daemonset.metrics import Metrics
from modelcache.abc.snapshot import Snapshot
from modelcache.abc.store import SnapshotInfo
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.errors import OriginBusy
from modelcache.fetch.progress import Phase, Progress
from modelcache.k8s.node import ModelReport, Object, State, WantedModel
from modelcache.patience import Cancellation
from modelcache.permission import Caller
from modelcache.sources.retrying import RetryLimits
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.store_fixtures import NO_LIMITS

TOLD = {"startedAt": "2026-01-02T03:04:05Z", "finishedAt": "2026-01-02T03:04:06Z"}


def outcome(root: Path, model: WantedModel, told: Mapping[str, Object], *, away: bool) -> ModelReport:
    """What a new agent reports when it has tried. `away`: nobody gives it the model's credential."""
    changed = threading.Event()

    def caller_of(model: WantedModel, cancel: Cancellation) -> Caller | None:
        if away:
            raise OriginBusy("the API server is away")
        return None

    def is_tried() -> bool:
        found = keeper.reports()[model.key]
        return found.error_code is not None if away else found.state is State.DOWNLOADED

    with (
        ModelCache(config=Config(root=root, limits=NO_LIMITS)) as cache,
        Keeper(cache, Metrics(cache), caller_of, changed.set) as keeper,
    ):
        keeper.want({model.key: model}, told)
        while not is_tried():
            assert changed.wait(30.0)
            changed.clear()
        return keeper.reports()[model.key]


def test_what_is_here_is_downloaded_after_a_restart_though_it_cant_be_looked_at_anew(tmp_path: Path) -> None:
    origin = tmp_path / "m"
    origin.mkdir()
    (origin / "weights").write_bytes(b"w" * 1000)
    model = WantedModel("m", f"file://{origin}")
    first = outcome(tmp_path / "root", model, {}, away=False)
    told = {"m": {"digest": first.digest, **TOLD}}

    found = outcome(tmp_path / "root", model, told, away=True)
    assert (found.state, found.error_code) == (State.DOWNLOADED, "origin-busy")
    assert (found.digest, found.revision, found.bytes_done, found.bytes_total) == (first.digest, first.revision, 1000, 1000)
    assert (found.started_at_s, found.finished_at_s) == (1767323045.0, 1767323046.0)

    another = outcome(tmp_path / "root", replace(model, uri=f"file://{tmp_path}/other"), told, away=True)
    assert (another.state, another.error_code, another.digest) == (State.ERROR, "origin-busy", None)


def test_an_origin_that_is_away_is_told_beside_what_is_here_and_takes_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemonset.keeping.LEAST_REFRESH_S", 0.05)
    config = Config(root=tmp_path / "root", limits=NO_LIMITS, refresh_s=0.0, retry=RetryLimits(base_s=0.0, attempts=3))
    seen: list[ModelReport] = []
    changed = threading.Condition()

    def tell() -> None:
        with changed:
            seen.extend(keeper.reports().values())
            changed.notify_all()

    def until(holds: Callable[[ModelReport], bool]) -> None:
        with changed:
            assert changed.wait_for(lambda: bool(seen) and holds(seen[-1]), 30.0)

    with ModelCache(config=config) as cache, Keeper(cache, Metrics(cache), lambda model, cancel: None, tell) as keeper:
        with FaultServer() as origin:
            origin.put("/m/weights", b"w" * 1000)
            keeper.want({"m": WantedModel("m", f"{origin.endpoint}/m/weights")}, {})
            until(lambda report: report.state is State.DOWNLOADED)
        until(lambda report: report.error_code is not None)
        found = seen[-1]
        keeper._look(keeper._kept["m"], Progress("u", Phase.RESOLVING))
        while_asking = keeper.reports()["m"]
    assert (found.state, found.error_code) == (State.DOWNLOADED, "origin-unreachable")
    assert [(each.bytes_done, each.bytes_total) for each in (found, while_asking)] == [(1000, 1000)] * 2


def test_a_sweep_in_the_middle_of_a_newer_version_s_coming_leaves_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemonset.keeping.LEAST_REFRESH_S", 0.05)
    changed = threading.Event()
    with (
        FaultServer() as origin,
        ModelCache(config=Config(root=tmp_path / "root", limits=NO_LIMITS, refresh_s=0.0)) as cache,
        Keeper(cache, Metrics(cache), lambda model, cancel: None, changed.set) as keeper,
    ):
        look_for = keeper._info

        def swept_first(model: WantedModel, snapshot: Snapshot) -> tuple[SnapshotInfo | None, str | None]:
            keeper._sweep(evicts=True)  # for another model: this one's new version is pinned, and not reported yet
            return look_for(model, snapshot)

        monkeypatch.setattr(keeper, "_info", swept_first)
        keeper.want({"m": WantedModel("m", f"{origin.endpoint}/m/weights")}, {})
        before = None
        for version in ("1", "2"):
            origin.put("/m/weights", version.encode() * 1000, etag=f'"{version}"')
            while (digest := keeper.reports()["m"].digest) == before:
                assert changed.wait(30.0)
                changed.clear()
            before = digest
            assert [lease.holder for lease in cache.find(str(digest)).leases] == ["cluster:m"]
