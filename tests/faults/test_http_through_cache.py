"""Faults of a web server under the whole cache: it gets the right bytes, or nothing; and no file of it holds a secret."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from modelcache import Config, ModelCache, Refresh
from modelcache.errors import BodyCut, DigestMismatch, OriginBusy, ProtocolViolation, SourceChanged
from modelcache.sources.http import HttpOptions
from modelcache.sources.retrying import RetryLimits
from modelcache.testing import faults
from modelcache.testing.fault_server import Call, Fault, FaultServer
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.transport import Timeouts
from modelcache.units import MIB
from tests.faults.reader import HEADER_TOKEN, PATH, SECRETS, fails, url_of

DATA = Random(5).randbytes(9 * MIB + 17)
OTHER = Random(6).randbytes(len(DATA))
SHA256 = hashlib.sha256(DATA).hexdigest()
LIMITS = RetryLimits(deadline_s=30.0, attempts=6, base_s=0.01, cap_s=0.02)


@pytest.fixture
def cache(server: FaultServer, tmp_path: Path) -> Iterator[ModelCache]:
    http = HttpOptions(headers={"127.0.0.1": {"X-Api-Key": HEADER_TOKEN}})
    config = Config.load(environ={}, root=tmp_path / "store", http=http, retry=LIMITS, timeouts=Timeouts(10, 10), limits=NO_LIMITS)
    with ModelCache(config=config) as made:
        yield made
    assert _secrets_in(tmp_path / "store") == []


def pull(cache: ModelCache, server: FaultServer) -> bytes:
    snapshot = cache.ensure(url_of(server.endpoint), refresh=Refresh.ALWAYS)
    [file] = snapshot.path.iterdir()
    assert file.name == PATH.rpartition("/")[2]
    return file.read_bytes()


def _secrets_in(store: Path) -> list[str]:
    shown = [f"{path.relative_to(store)}\n".encode() + (path.read_bytes() if path.is_file() else b"") for path in store.rglob("*")]
    assert len(shown) > 5
    return [secret for secret in SECRETS if any(secret.encode() in text for text in shown)]


def each_time(*script: Fault | None) -> Fault:
    """The first range by the first fault, the next by the next, the rest by the last; None: properly. Listings are answered properly."""
    steps = list(script)

    def fault(call: Call) -> None:
        if call.received.headers.get("range") == "bytes=0-0":
            call.reply(call.proper)
            return
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        if step is None:
            call.reply(call.proper)
        else:
            step(call)

    return fault


@pytest.mark.parametrize("headers", [{"Repr-Digest": "sha-256=:{base64}:"}, {"X-Checksum-Sha256": "{hex}"}], ids=["repr", "hex"])
def test_right_size_and_wrong_bytes_are_told_and_not_kept(server: FaultServer, cache: ModelCache, headers: dict[str, str]) -> None:
    stated = {name: value.format(base64=base64.b64encode(bytes.fromhex(SHA256)).decode(), hex=SHA256) for name, value in headers.items()}
    server.put(PATH, DATA, headers=stated)
    server.fail(PATH, each_time(faults.wrong_bytes))
    with fails(DigestMismatch) as caught:
        pull(cache, server)
    assert (caught.value.expected, cache.list()) == (f"sha256:{SHA256}", [])
    assert caught.value.got is not None
    assert caught.value.got != caught.value.expected
    server.fail(PATH, faults.wrong_bytes, times=0)
    assert pull(cache, server) == DATA


def test_wrong_bytes_once_are_fetched_again(server: FaultServer, cache: ModelCache) -> None:
    server.put(PATH, DATA, headers={"X-Checksum-Sha256": SHA256})
    server.fail(PATH, each_time(faults.wrong_bytes, None))
    assert pull(cache, server) == DATA


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.cut_short(MIB + 1), id="cut"),
        pytest.param(faults.reset(3 * MIB), id="reset"),
        pytest.param(faults.status(503, {"Retry-After": "0"}), id="503"),
        pytest.param(faults.status(429), id="429"),
        pytest.param(faults.raw(b""), id="no answer"),
    ],
)
def test_what_passes_costs_a_pause_and_no_byte_twice(server: FaultServer, cache: ModelCache, fault: Fault) -> None:
    server.put(PATH, DATA)
    server.fail(PATH, each_time(fault, fault, None, fault, None))
    assert pull(cache, server) == DATA


def test_an_origin_that_stays_busy_is_given_up_with_what_it_asked_for(server: FaultServer, cache: ModelCache) -> None:
    server.put(PATH, DATA)
    server.fail(PATH, faults.status(429, {"Retry-After": "3000"}))
    with fails(OriginBusy) as caught:
        pull(cache, server)
    assert caught.value.retry_after_s == 3000


def test_a_file_without_a_version_that_is_cut_is_never_glued(server: FaultServer, cache: ModelCache) -> None:
    server.put(PATH, DATA, etag=None)

    def replaced_and_cut(call: Call) -> None:
        faults.cut_short(5 * MIB)(call)
        server.put(PATH, OTHER, etag=None)

    server.fail(PATH, each_time(replaced_and_cut, None))
    try:
        got = pull(cache, server)
    except BodyCut:
        got = pull(cache, server)
    assert got == OTHER


@pytest.mark.parametrize("notices", [True, False], ids=["412", "precondition ignored"])
def test_an_object_replaced_in_mid_fetch_is_fetched_anew(server: FaultServer, cache: ModelCache, notices: bool) -> None:
    server.put(PATH, DATA)

    def replaced(call: Call) -> None:
        faults.cut_short(5 * MIB)(call)
        server.put(PATH, OTHER, etag='"v2"')

    server.fail(PATH, each_time(replaced, None if notices else faults.ignored_precondition, None))
    assert pull(cache, server) == OTHER


def test_an_object_that_never_rests_is_told(server: FaultServer, cache: ModelCache) -> None:
    server.put(PATH, DATA)
    versions = iter(range(1000))

    def replaced(call: Call) -> None:
        call.reply(call.proper)
        server.put(PATH, OTHER, etag=f'"other-{next(versions)}"')

    server.fail(PATH, each_time(replaced))
    with fails(SourceChanged):
        pull(cache, server)
    assert cache.list() == []


@pytest.mark.parametrize("fault", [faults.gzipped, faults.ignored_range, faults.other_range(-1)])
def test_a_violation_ends_the_fetch_and_keeps_nothing(server: FaultServer, cache: ModelCache, fault: Fault) -> None:
    server.put(PATH, DATA)
    server.fail(PATH, each_time(fault))
    with fails(ProtocolViolation):
        pull(cache, server)
    assert cache.list() == []


def test_no_secret_is_in_the_progress(server: FaultServer, cache: ModelCache) -> None:
    server.put(PATH, DATA)
    seen: list[object] = []
    cache.ensure(url_of(server.endpoint), progress=seen.append)
    assert seen
    assert not any(secret in repr(seen) for secret in SECRETS)
