"""The store stays clear of kubelet's thresholds on a file system that both use."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonset.kubelet import CLEAR_SHARE, capped, expect_room, parse, text_of, told
from modelcache.abc.store import Limits
from modelcache.agent.client import AgentClient, Identity
from modelcache.errors import BadConfig, NoSpace
from modelcache.testing.agents import agent
from modelcache.testing.fault_server import FaultServer
from modelcache.units import GIB, MIB

LIMITS = Limits(max_bytes=5, high_watermark=0.9, low_watermark=0.8)


@pytest.mark.parametrize(
    ("text", "high", "low"),
    [
        ("nodefs.available=10%", 0.88, 0.8),
        ("nodefs.available<10%,imagefs.available<15%", 0.83, 0.8),
        ("imageGCHighThresholdPercent=75", 0.73, 0.73),
        ("nodefs.available=25Gi", 0.73, 0.73),
        ("nodefs.available=1%", 0.9, 0.8),
    ],
)
def test_the_strictest_threshold_counts(text: str, high: float, low: float) -> None:
    limits = capped(LIMITS, parse(text), 100 * GIB)
    assert (limits.high_watermark, limits.low_watermark) == pytest.approx((high, low))
    assert limits.max_bytes == LIMITS.max_bytes


@given(percent=st.integers(0, 97), total_bytes=st.integers(1 << 30, 1 << 50), high=st.floats(0.01, 1))
def test_a_full_store_leaves_what_kubelet_wants(percent: int, total_bytes: int, high: float) -> None:
    limits = capped(Limits(None, high, high / 2), parse(f"nodefs.available={percent}%"), total_bytes)
    assert limits.low_watermark <= limits.high_watermark <= high
    assert (1 - limits.high_watermark) * total_bytes >= (percent / 100 + CLEAR_SHARE) * total_bytes * (1 - 1e-9)


@pytest.mark.parametrize(
    "text",
    ["", "memory.available=1Gi", "nodefs.available=101%", "nodefs.available=much", "imageGCHighThresholdPercent=1Gi", "nodefs.available"],
)
def test_what_is_no_threshold_is_refused(text: str) -> None:
    with pytest.raises(BadConfig):
        parse(text)


@pytest.mark.parametrize("text", ["nodefs.available=99%", "nodefs.available=100Gi"])
def test_thresholds_that_leave_nothing_are_refused(text: str) -> None:
    limits = capped(LIMITS, parse(text), 100 * GIB)
    assert (limits.high_watermark, limits.low_watermark) == (0, 0)
    with pytest.raises(BadConfig, match="no room"):
        expect_room(limits, parse(text))


def configz(**config: object) -> dict[str, object]:
    return {"kubeletconfig": {"kind": "KubeletConfiguration", **config}}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {
                "evictionHard": {
                    "imagefs.available": "15%",
                    "memory.available": "100Mi",
                    "nodefs.available": "10%",
                    "nodefs.inodesFree": "5%",
                },
                "imageGCHighThresholdPercent": 85,
            },
            "nodefs.available=10%,imagefs.available=15%,imageGCHighThresholdPercent=85",
        ),
        (
            {"evictionHard": {"nodefs.available": "1Gi"}, "evictionSoft": {"nodefs.available": "20%"}, "imageGCHighThresholdPercent": 100},
            "nodefs.available=1Gi,nodefs.available=20%",
        ),
        ({"evictionHard": {"nodefs.available": "0%", "imagefs.available": "100%"}, "imageGCHighThresholdPercent": 0}, ""),
        ({"evictionHard": {"nodefs.available": "5e9"}}, "nodefs.available=5e9"),
        ({"evictionHard": None}, ""),
        ({}, ""),
    ],
)
def test_what_kubelet_tells_is_read(config: dict[str, object], expected: str) -> None:
    assert ",".join(map(text_of, told(configz(**config)))) == expected


def test_of_two_of_one_name_the_stricter_counts() -> None:
    soft = told(configz(evictionHard={"nodefs.available": "10Gi"}, evictionSoft={"nodefs.available": "5e10"}))
    assert capped(LIMITS, soft, 10**11).high_watermark == pytest.approx(0.48)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"kubeletconfig": []},
        configz(evictionHard="10%"),
        configz(evictionHard={"nodefs.available": "much"}),
        configz(evictionHard={"nodefs.available": True}),
        configz(evictionHard={"nodefs.available": "-1%"}),
        configz(imageGCHighThresholdPercent=101),
        configz(imageGCHighThresholdPercent=[85]),
    ],
)
def test_what_kubelet_can_t_mean_is_not_taken_for_nothing(answer: dict[str, object]) -> None:
    with pytest.raises(BadConfig):
        told(answer)


def test_a_model_that_does_not_fit_below_them_is_refused_with_the_numbers(tmp_path: Path) -> None:
    """A threshold that leaves a ten-millionth of the disk."""
    options = ["--kubelet-eviction", "imageGCHighThresholdPercent=2.00001"]
    with FaultServer() as server, agent(tmp_path, options=options) as node, AgentClient(node.admin) as client:
        server.put("/m/weights", b"w" * (16 * MIB))
        usage = client.status().usage
        assert usage is not None
        assert usage.limits.high_watermark == pytest.approx(1e-7)
        with pytest.raises(NoSpace, match=r"are needed, .* are available, 0 B could be freed and 0 B are held") as refused:
            client.ensure(f"{server.endpoint}/m/weights")
        assert refused.value.needed_bytes >= 16 * MIB


def test_who_holds_the_rest_is_told_to_the_administrator_alone(tmp_path: Path) -> None:
    environ = {"MODELCACHE_MAX_BYTES": "1TiB", "MODELCACHE_REFUSED_NETWORKS": "169.254.0.0/16"}
    options = ["--max-bytes", "1MiB"]
    with (
        FaultServer() as server,
        agent(tmp_path, environ, options=options) as node,
        AgentClient(node.admin) as client,
        AgentClient(node.driver) as driver,
    ):
        for name in ("held", "refused"):
            server.put(f"/m/{name}", name.encode() * 100_000)
        client.ensure(f"{server.endpoint}/m/held", lease=("volume:of-somebody", 600.0))
        with pytest.raises(NoSpace, match="are held, by `volume:of-somebody`") as told:
            client.ensure(f"{server.endpoint}/m/refused")
        with pytest.raises(NoSpace, match="are held") as refused:
            driver.ensure(f"{server.endpoint}/m/refused", identity=Identity("team-a", "default", {}))
        assert "somebody" not in str(refused.value.as_dict())
        assert told.value.held_bytes == refused.value.held_bytes > 0
