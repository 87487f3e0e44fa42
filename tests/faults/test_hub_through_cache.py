"""Whatever a hub and its CDN answer, a pull ends right or with an error; and right once they answer properly."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelcache import Config, ModelCache, ModelCacheError, Refresh
from modelcache.sources.huggingface import HubOptions
from modelcache.sources.retrying import RetryLimits
from modelcache.testing import faults
from modelcache.testing.fault_server import Call, Fault
from modelcache.testing.servers.hub import HubServer
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.transport import Timeouts

LARGE = Random(1).randbytes(5_000_000)
SMALL = b'{"model_type": "llama"}'
FILES = {"config.json": SMALL, "model.safetensors": LARGE}


ANYWHERE: dict[str, Fault] = {
    "500": faults.status(500),
    "503": faults.status(503, {"Retry-After": "0"}),
    "429": faults.status(429, {"RateLimit": '"resolvers";r=0;t=0'}),
    "401": faults.status(401),
    "403": faults.status(403, {"X-Error-Code": "GatedRepo"}),
    "404": faults.status(404, {"X-Error-Code": "EntryNotFound"}),
    "nothing": faults.raw(b""),
    "reset": faults.reset(0),
    "no http": faults.raw(b"SSH-2.0-OpenSSH_9\r\n"),
    "page": faults.status(200, {"Content-Type": "text/html"}, b"<html>sign in</html>"),
    "loop": faults.redirect("{target}"),
    "cut": faults.cut_short(10),
    "wrong bytes": faults.wrong_bytes,
    "no range": faults.ignored_range,
    "gzip": faults.gzipped,
    "closing": faults.closing,
}
WHERE = ("info", "tree", "resolve small", "resolve large", "cache", "cdn")
SCRIPTS = st.dictionaries(
    st.sampled_from(WHERE), st.lists(st.sampled_from([*sorted(ANYWHERE), "expired"]), min_size=1, max_size=3), max_size=3
)


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.repository(files=FILES)
        yield server


def expired(hub: HubServer) -> Fault:
    """Half of a proper answer; and every URL that was given out is refused from now on."""

    def fault(call: Call) -> None:
        hub.expire_urls()
        faults.cut_short(len(call.proper.body) // 2)(call)

    return fault


def play(hub: HubServer, script: dict[str, list[str]]) -> None:
    """Have these faults answer the first requests of each kind."""
    commit = hub.repositories["org/model"].refs["main"]
    front = {
        "info": "/api/models/org/model/revision/main",
        "tree": f"/api/models/org/model/tree/{commit}",
        "resolve small": f"/org/model/resolve/{commit}/config.json",
        "resolve large": f"/org/model/resolve/{commit}/model.safetensors",
        "cache": f"/api/resolve-cache/models/org/model/{commit}/config.json",
    }
    for where in WHERE:
        steps = [expired(hub) if name == "expired" else ANYWHERE[name] for name in script.get(where, [])]
        server, path = (hub.cdn, f"/repos/org/model/{hashlib.sha256(LARGE).hexdigest()}") if where == "cdn" else (hub.front, front[where])
        server.fail(path, in_turn(iter(steps)))


def in_turn(steps: Iterator[Fault]) -> Fault:
    def fault(call: Call) -> None:
        step = next(steps, None)
        if step is None:
            call.reply(call.proper)
        else:
            step(call)

    return fault


@given(script=SCRIPTS)
@example(script={"cdn": ["wrong bytes"]})
@example(script={"cdn": ["wrong bytes", "wrong bytes"], "cache": ["wrong bytes"]})
@example(script={"cdn": ["expired", "503", "expired"]})
@example(script={"resolve large": ["page"], "resolve small": ["page"]})
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_pull_under_faults_is_right_or_an_error(hub: HubServer, script: dict[str, list[str]]) -> None:
    play(hub, script)
    with tempfile.TemporaryDirectory() as directory:
        config = Config.load(
            environ={},
            root=Path(directory) / "store",
            limits=NO_LIMITS,
            hf=HubOptions(endpoint=hub.endpoint),
            retry=RetryLimits(base_s=0.0001, attempts=3, first_contact_attempts=3),
            timeouts=Timeouts(20, 20),
        )
        with ModelCache(config=config) as cache:
            try:
                check(cache)
            except ModelCacheError:
                assert cache.list() == []
            play(hub, {})
            check(cache)


def check(cache: ModelCache) -> None:
    snapshot = cache.ensure("hf://org/model", refresh=Refresh.ALWAYS)
    assert {path.name: path.read_bytes() for path in snapshot.path.iterdir()} == FILES
