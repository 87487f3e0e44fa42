"""How long the agent leaves an API server alone that fails it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from daemonset.following import Follower
from modelcache.errors import ModelCacheError, OriginBusy, OriginStalled
from modelcache.k8s.api import ApiServer, Event, Object, VersionGone
from modelcache.patience import Cancellation

LISTED: Object = {"metadata": {"resourceVersion": "1"}}
EVENT = Event("BOOKMARK", {"metadata": {"resourceVersion": "2"}})


class Scripted:
    """Watches as they were written down; then the follower's end. `pauses`: after how many failures in a row each pause came."""

    def __init__(self, *watches: tuple[int, ModelCacheError | None]) -> None:
        self.watches = list(watches)
        self.pauses: list[int] = []
        self.lists = 0
        self.ending = Cancellation()

    def get(self, *_: object) -> Object:
        self.lists += 1
        return {"items": [], "metadata": {"resourceVersion": "1"}}

    def watch(self, *_: object) -> Iterator[Event]:
        if not self.watches:
            self.ending.cancel()
            self.ending.check()
        events, error = self.watches.pop(0)
        yield from [EVENT] * events
        if error is not None:
            raise error

    def after(self, failures: int, retry_after_s: float | None = None) -> float:
        self.pauses.append(failures)
        return 0.0


def test_a_watch_that_worked_begins_the_count_of_failures_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    silent, busy, gone = OriginStalled("silent"), OriginBusy("busy"), VersionGone("gone")
    api = Scripted((0, busy), (0, busy), (3, silent), (1, silent), (0, gone), (0, None), (1, None), (0, busy))
    monkeypatch.setattr("daemonset.following.AGAIN", api)
    seen: list[Any] = []
    with Follower(cast(ApiServer, api), "n", seen.append, api.ending) as follower:
        follower._thread.join(30.0)
    assert api.pauses == [1, 2, 1, 1, 2, 3, 1]
    assert (api.lists, seen) == (2, [None, None])


@pytest.mark.parametrize(
    "answer", [{}, {"metadata": "2"}, {"metadata": {}}, LISTED | {"items": {"a": 1}}, LISTED | {"items": [1]}, LISTED | {"items": [{}]}]
)
def test_who_answers_in_an_api_server_s_place_is_not_believed(answer: Object, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Scripted((0, OriginBusy("busy")))
    monkeypatch.setattr("daemonset.following.AGAIN", api)
    answers = [answer]
    monkeypatch.setattr(api, "get", lambda *_: answers.pop() if answers else Scripted.get(api))
    seen: list[Any] = []
    with Follower(cast(ApiServer, api), "n", seen.append, api.ending) as follower:
        follower._thread.join(30.0)
    assert (api.lists, seen, api.pauses) == (1, [None], [1, 2])
