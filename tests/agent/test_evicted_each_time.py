"""An agent whose models are evicted before they can be held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemonset.calls import Calls, Waiters
from daemonset.metrics import Metrics
from daemonset.service import LEASE_TRIES, Access, AgentService, Seen
from modelcache.agent.v1 import agent_pb2 as pb
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.errors import NotCached
from modelcache.patience import Cancellation
from modelcache.testing.store_fixtures import NO_LIMITS


def test_it_gives_up_and_says_of_which_model_without_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tries = tmp_path / "model", []
    model.mkdir()
    (model / "weights").write_bytes(b"w")

    def evicted(*_: object, **__: object) -> Any:
        tries.append(1)
        raise NotCached("gone")

    with ModelCache(config=Config(root=tmp_path / "root", limits=NO_LIMITS)) as cache:
        held = cache.ensure(str(model))
        monkeypatch.setattr(cache, "ensure", lambda *_, **__: held)
        monkeypatch.setattr(cache, "lease", evicted)
        service = AgentService(cache, Calls(), Waiters(1), Access(speaks_for_callers=False), Seen(Metrics(cache)))
        request = pb.EnsureRequest(uri="https://user:hunter2@host/m?X-Amz-Signature=hunter2", lease_holder="pod", lease_ttl_s=60.0)
        with pytest.raises(NotCached, match="https://host/m") as caught:
            service._ensured(request, None, None, lambda look: None, Cancellation())

    assert len(tries) == LEASE_TRIES
    assert "hunter2" not in str(caught.value.as_dict())
