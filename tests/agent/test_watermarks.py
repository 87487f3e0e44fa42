"""The store stays clear of what kubelet is configured with, as kubelet itself tells it where it may be asked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from daemonset import watermarks
from daemonset.__main__ import main
from daemonset.backoff import Backoff
from daemonset.kubelet import parse
from daemonset.metrics import Metrics
from daemonset.watermarks import CONFIGZ, Kubelet, WatermarkKeeper
from modelcache.agent.client import AgentClient
from modelcache.agent.watermarks import FLAGS, KUBELET, NONE, Watermarks
from modelcache.cache import ModelCache
from modelcache.cli.agent_checks import check_agent
from modelcache.config import Config, Settings
from modelcache.errors import AccessDenied, ModelCacheError, NoSpace, OriginBusy
from modelcache.patience import Cancellation
from modelcache.testing.agents import agent, watermarks_of
from modelcache.testing.fault_server import Call, FaultServer, Reply
from modelcache.testing.polling import until
from modelcache.testing.servers.certificates import Certificate
from modelcache.testing.small_filesystem import Kind
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import MIB
from tests.conftest import SmallDisk

FLAGGED = "nodefs.available=10%"
TOLD = {"kubeletconfig": {"evictionHard": {"nodefs.available": "20%", "imagefs.available": "15%"}, "imageGCHighThresholdPercent": 85}}


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ModelCache]:
    with closing(ModelCache(config=Config(root=tmp_path / "store", limits=NO_LIMITS))) as made:
        yield made


def size_of(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_blocks * found.f_frsize


def summary(nodefs: int | None, imagefs: int | None) -> dict[str, Any]:
    """As kubelet tells how large its file systems are."""
    return {"node": {"nodeName": "n", "fs": {"capacityBytes": nodefs}, "runtime": {"imageFs": {"capacityBytes": imagefs}}}, "pods": []}


class Asked:
    """A kubelet that answers what it is told to, again and again. `sizes`: None: it may not be asked for them."""

    def __init__(self, answer: dict[str, Any] | ModelCacheError, sizes: dict[str, Any] | None = None) -> None:
        self.answer = answer
        self.sizes = sizes

    def __call__(self, path: str, cancel: Cancellation) -> dict[str, Any]:
        answer = self.answer if path == CONFIGZ else self.sizes or AccessDenied("403 of nodes/stats")
        if isinstance(answer, ModelCacheError):
            raise answer
        return answer


def test_flags_count_until_kubelet_has_told_and_the_last_it_told_stays(
    cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watermarks, "EVERY_S", 0.01)
    monkeypatch.setattr(watermarks, "AGAIN", Backoff(0.01, 0.01))
    asked = Asked(AccessDenied("the API server answered 403 Forbidden"), summary(None, size_of(tmp_path)))
    metrics = Metrics(cache)
    with WatermarkKeeper(cache, metrics, Kubelet(parse(FLAGGED), asked), tmp_path, Cancellation()) as keeper:

        def expect(source: str, high: float, why: str | None) -> Watermarks:
            until(lambda: (keeper.now.source, round(keeper.now.high, 6), keeper.now.why) == (source, high, why), f"{source}, {high}, {why}")
            assert cache.usage().limits.high_watermark == pytest.approx(high)
            return keeper.now

        expect(FLAGS, 0.88, "the API server answered 403 Forbidden")
        asked.answer = TOLD
        assert list(expect(KUBELET, 0.78, None).thresholds) == [
            "nodefs.available=20%",
            "imagefs.available=15%",
            "imageGCHighThresholdPercent=85",
        ]
        asked.answer = OriginBusy("kubelet begins anew")
        expect(KUBELET, 0.78, "kubelet begins anew")
        asked.answer = {"kubeletconfig": {}}
        expect(KUBELET, 1.0, None)
        cache.lease(str(cache.ensure(_model(tmp_path, "held")).digest), holder="pod", ttl_s=600.0)
        cache.ensure(_model(tmp_path, "here"))
        asked.answer = {"kubeletconfig": {"evictionHard": {"nodefs.available": "100Pi"}}}
        expect(KUBELET, 0.0, None)
        until(lambda: [info.leases[0].holder for info in cache.list() if info.leases] == ["pod"] and len(cache.list()) == 1, "room")
        until(lambda: metrics.registry.get_sample_value("modelcache_evictions_total", {"why": "room"}) == 1, "it to be counted")
        with pytest.raises(NoSpace):
            cache.ensure(_model(tmp_path, "more"))
        asked.answer = {"kubeletconfig": {"evictionHard": {"nodefs.available": "much"}}}
        expect(KUBELET, 0.0, "no value of nodefs.available that can be read")
        asked.answer = {"kubeletconfig": {}}
        expect(KUBELET, 1.0, None)
        cache.ensure(_model(tmp_path, "more"))


def _model(directory: Path, name: str) -> str:
    (directory / name).write_bytes(name.encode() * 1000)
    return f"file://{directory}/{name}"


NODE, IMAGES = "nodefs.available=20%", "imagefs.available=15%,imageGCHighThresholdPercent=85"
UNKNOWN = "how large its file systems are (403 of nodes/stats)"


@pytest.mark.parametrize(
    ("places", "sizes", "expected", "why"),
    [
        ("pods elsewhere", None, "", UNKNOWN),  # the store's disk is its own
        ("", None, "", UNKNOWN),
        ("pods here", None, f"{NODE},{IMAGES}", UNKNOWN),  # images are taken to be there, too
        ("pods here", (1.0, 1.0), f"{NODE},{IMAGES}", None),
        ("pods here", (1.0, 0.5), NODE, None),  # images have a disk of their own
        ("pods elsewhere", (0.5, 0.995), IMAGES, None),  # which is the store's
        ("pods elsewhere", (1.0, 0.5), "", None),  # another disk of the same size, as is seen
        ("", (1.0, 0.5), NODE, None),
        ("pods here", (1.0, None), f"{NODE},{IMAGES}", "how large imagefs is"),
        ("pods here, images elsewhere", (1.0, 1.0), NODE, None),
        ("pods elsewhere, images here", None, IMAGES, None),
    ],
)
def test_only_thresholds_of_the_store_s_own_disk_count(
    cache: ModelCache, tmp_path: Path, places: str, sizes: tuple[float, float | None] | None, expected: str, why: str | None
) -> None:
    known = {name: tmp_path if where == "here" else Path("/proc") for name, where in (each.split() for each in places.split(", ") if each)}
    told = None if sizes is None else summary(*(None if share is None else int(share * size_of(tmp_path)) for share in sizes))
    with WatermarkKeeper(
        cache, Metrics(cache), Kubelet((), Asked(TOLD, told), known.get("images")), known.get("pods"), Cancellation()
    ) as keeper:
        until(lambda: keeper.now.source == KUBELET, "kubelet's answer")
        assert (",".join(keeper.now.thresholds), keeper.now.why) == (expected, why)


def test_what_an_option_names_counts_wherever_the_store_is(cache: ModelCache) -> None:
    known = Kubelet(parse("imagefs.available=1%,imageGCHighThresholdPercent=99"), Asked(TOLD))
    with WatermarkKeeper(cache, Metrics(cache), known, Path("/proc"), Cancellation()) as keeper:
        until(lambda: keeper.now.source == KUBELET, "kubelet's answer")
        assert (",".join(keeper.now.thresholds), keeper.now.why) == (IMAGES, None)


def test_what_came_under_looser_options_goes_when_an_agent_begins_under_stricter_ones(cache: ModelCache, tmp_path: Path) -> None:
    cache.lease(str(cache.ensure(_model(tmp_path, "held")).digest), holder="pod", ttl_s=600.0)
    cache.ensure(_model(tmp_path, "here"))
    all_but_a_block = int(size_of(tmp_path) * (0.98 - 1e-9))
    with WatermarkKeeper(cache, Metrics(cache), Kubelet(parse(f"nodefs.available={all_but_a_block}")), None, Cancellation()):
        until(lambda: [[lease.holder for lease in info.leases] for info in cache.list()] == [["pod"]], "room")


@pytest.mark.root
def test_models_that_nobody_holds_leave_when_others_fill_the_disk(
    small_disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watermarks, "LOOK_S", 0.01)
    disk = small_disk(size_bytes=64 * MIB, kind=Kind.TMPFS)
    with closing(ModelCache(config=Config(root=disk / "store", limits=NO_LIMITS))) as cache:
        cache.lease(str(cache.ensure(_model(tmp_path, "held")).digest), holder="pod", ttl_s=600.0)
        cache.ensure(_model(tmp_path, "here"))
        with WatermarkKeeper(cache, Metrics(cache), Kubelet(parse("nodefs.available=30%")), None, Cancellation()):
            (disk / "logs").write_bytes(bytes(40 * MIB))
            assert len(cache.list()) == 2
            (disk / "images").write_bytes(bytes(8 * MIB))
            until(lambda: [[lease.holder for lease in info.leases] for info in cache.list()] == [["pod"]], "room")


def test_flags_that_leave_nothing_end_the_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--root", str(tmp_path / "store"), "--socket", str(tmp_path / "s"), "--kubelet-eviction", "nodefs.available=99%"]
    assert main(options) == 1
    assert "leave the store no room" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given", [["proxy"], ["http://127.0.0.1:1"], ["proxy", "--node-name", "n"], ["https://127.0.0.1:1", "--images-dir", "/there/is/none"]]
)
def test_who_can_t_be_asked_is_told_before_anything_begins(tmp_path: Path, given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path / "store"), "--socket", str(tmp_path / "s"), "--kubelet-configz", *given]) == 1
    assert "error: " in capsys.readouterr().err


def test_a_real_agent_asks_kubelet_as_who_it_is_and_tells_what_came_of_it(tmp_path: Path, certificate: Certificate) -> None:
    token = tmp_path / "token"
    token.write_text("of-the-agent\n")
    allowed = False

    def answer(call: Call) -> None:
        path = call.received.target.partition("?")[0]
        known = call.received.headers.get("authorization") == "Bearer of-the-agent"
        told = TOLD if path == "/configz" else summary(None, size_of(tmp_path))
        body = json.dumps(told if known and allowed else {"message": "Forbidden (verb=get, resource=nodes, subresource=configz)"})
        call.reply(Reply(HTTPStatus.OK if known and allowed else HTTPStatus.FORBIDDEN, {}, body.encode()))

    with FaultServer(certificate) as server:
        for path in ("/configz", "/stats/summary"):
            server.fail(path, answer)
        options = ["--kubelet-configz", server.endpoint, "--kubelet-ca", str(certificate.ca), "--api-token", str(token)]
        options += ["--pods-dir", str(tmp_path), "--kubelet-eviction", FLAGGED]
        with agent(tmp_path, options=options) as node, AgentClient(node.admin) as client:
            until(lambda: "subresource=configz" in (watermarks_of(client).why or ""), "the refusal")
            assert (watermarks_of(client).source, round(watermarks_of(client).high, 6)) == (FLAGS, 0.88)
            until(lambda: any(each.event == "thresholds" and "configz" in each.message for each in client.recent()), "the log")
        allowed = True
        with agent(tmp_path, options=options) as node, AgentClient(node.admin) as client:
            until(lambda: watermarks_of(client).source == KUBELET, "what kubelet told")
            assert (watermarks_of(client).why, round(watermarks_of(client).high, 6)) == (None, 0.78)
            usage = client.status().usage
            assert usage is not None
            assert usage.limits.high_watermark == pytest.approx(0.78)
            settings = Settings.read({"HOME": "/", "MODELCACHE_ROOT": str(node.root), "MODELCACHE_AGENT": str(node.admin)})
            [finding] = check_agent(settings)
            assert "kubelet's thresholds: nodefs.available=20%, imagefs.available=15%" in finding.message
            assert finding.message.endswith("(told by kubelet)")
    with agent(tmp_path) as node, AgentClient(node.admin) as client:
        assert (watermarks_of(client).source, list(watermarks_of(client).thresholds), watermarks_of(client).high) == (NONE, [], 1.0)
