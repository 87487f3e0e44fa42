"""Events of what a scrub finds: few, in the words of the API server, and never in the way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from daemonset.announcing import BURST, MAX_CHARACTERS, REFILL_S, TRIES, Announcement, Announcer
from modelcache.errors import AccessDenied, BadConfig, ModelCacheError, NotFound, OriginBusy, SourceChanged
from modelcache.patience import Cancellation
from modelcache.testing.polling import until


class Server:
    """`Poster`."""

    def __init__(self, *errors: ModelCacheError) -> None:
        self.errors = list(errors)
        self.tried = 0
        self.events: list[dict[str, Any]] = []
        self.node: dict[str, Any] | ModelCacheError = {"metadata": {"uid": "u-1"}}

    def get(self, path: str, cancel: Cancellation) -> dict[str, Any]:
        if isinstance(self.node, ModelCacheError):
            raise self.node
        return self.node

    def post(self, path: str, body: dict[str, Any], cancel: Cancellation) -> dict[str, Any]:
        assert path == "/api/v1/namespaces/default/events"
        self.tried += 1
        if self.errors:
            raise self.errors.pop(0)
        self.events.append(body)
        return body


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_flood_becomes_a_few_events_and_a_number() -> None:
    server, clock = Server(), Clock()
    with Announcer(server, "node-1", clock=clock) as announce:
        for number in range(BURST + 500):
            announce(Announcement("DamageFound", f"{number} " + "x" * 5000, warning=True))
        clock.now_s = 2 * REFILL_S
        for _ in range(10):
            announce(Announcement("DamageRepaired", "whole again"))
    assert len(server.events) == BURST + 2
    assert max(len(event["message"]) for event in server.events) == MAX_CHARACTERS
    assert server.events[BURST]["message"] == "whole again (500 more events were left out)"
    assert server.events[BURST + 1]["message"] == "whole again"
    assert {(event["type"], event["reason"]) for event in server.events} == {("Warning", "DamageFound"), ("Normal", "DamageRepaired")}
    assert len({event["metadata"]["name"] for event in server.events}) == BURST + 2


@pytest.mark.parametrize("error", [NotFound("no such node"), AccessDenied("not yours")])
def test_it_is_about_the_local_model_node_that_there_is_or_else_the_node(error: ModelCacheError) -> None:
    server = Server()
    with Announcer(server, "node-1") as announce:
        nodes: list[dict[str, Any] | ModelCacheError] = [{"metadata": {"uid": "u-1"}}, error, {"metadata": {"uid": "u-2"}}]
        while nodes:
            server.node = nodes.pop(0)
            announce(Announcement("DamageFound", "x"))
            until(lambda: len(server.events) + len(nodes) == 3, "the event")
    about = [event["involvedObject"] for event in server.events]
    assert about[0] == {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "LocalModelNode", "name": "node-1", "uid": "u-1"}
    assert about[1] == {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-1"}
    assert about[2] == about[0] | {"uid": "u-2"}  # deleted, and made again


def test_a_busy_server_is_asked_again_and_one_that_refuses_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("daemonset.announcing.AGAIN_S", 0.001)
    errors: Sequence[ModelCacheError]
    for errors, tried, told in (
        ([OriginBusy("429", retry_after_s=0.001)], 2, 1),
        ([OriginBusy("503")] * TRIES, TRIES, 0),
        ([BadConfig("422")], 1, 0),
        ([AccessDenied("403")], 1, 0),
        ([OriginBusy("the answer was lost"), SourceChanged("409")], 2, 0),  # it is there already
    ):
        server = Server(*errors)
        with caplog.at_level(logging.WARNING), Announcer(server, "n") as announce:
            announce(Announcement("DamageFound", "x"))
        assert (server.tried, len(server.events)) == (tried, told)
        lost = bool(errors) and not told and not isinstance(errors[-1], SourceChanged)
        assert bool(caplog.records) == lost
        caplog.clear()


def test_a_server_that_is_busy_when_it_is_asked_for_the_node_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemonset.announcing.AGAIN_S", 0.001)

    class Busy(Server):
        asked = 0

        def get(self, path: str, cancel: Cancellation) -> dict[str, Any]:
            self.asked += 1
            if self.asked < TRIES:
                raise OriginBusy("429")
            return super().get(path, cancel)

    server = Busy()
    with Announcer(server, "n") as announce:
        announce(Announcement("DamageFound", "x"))
    assert len(server.events) == 1


def test_an_end_waits_for_no_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemonset.announcing.ENDING_S", 0.001)
    asked = threading.Event()

    class Silent(Server):
        def post(self, path: str, body: dict[str, Any], cancel: Cancellation) -> dict[str, Any]:
            asked.set()
            cancel.wait(3600.0)
            raise AssertionError("unreachable")

    with Announcer(Silent(), "n") as announce:
        announce(Announcement("DamageFound", "x"))
        assert asked.wait(30.0)
    assert not [each for each in threading.enumerate() if each.name == "agent events"]
