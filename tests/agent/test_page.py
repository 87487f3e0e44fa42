"""Who may see what names models, and the page in a real browser."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from prometheus_client import CollectorRegistry

from daemonset import web as web_module
from daemonset.reviews import ACCESS_REVIEWS, AT_ONCE, KEPT, TOKEN_REVIEWS, TTL_S, Reviews, Verdict, by, nobody
from daemonset.web import TEXT, Answer, Pages, Web
from modelcache.agent.client import AgentClient
from modelcache.errors import AgentBusy, ModelCacheError, OriginBusy
from modelcache.patience import Cancellation, Deadline
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.fault_server import Call, FaultServer, Reply
from modelcache.testing.servers.browser import Browser
from modelcache.testing.servers.ports import LOOPBACK

ALICE = {"username": "alice", "uid": "7", "groups": ["ops"], "extra": {"scopes": ["a"]}}
NASTY = "%3Cimg%20src=x%20onerror=alert(1)%3E"


def reviewed(path: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A cluster in which alice may see everything, and bob exists."""
    if path == TOKEN_REVIEWS:
        user = {"good": ALICE, "weak": {"username": "bob"}}.get(spec["token"])
        return {"status": {"authenticated": user is not None, **({"user": user} if user else {})}}
    right = {name: spec.get(name) for name in ("user", "groups", "uid", "extra", "nonResourceAttributes")}
    asked = {"path": spec["nonResourceAttributes"]["path"], "verb": "get"}
    wanted = {"user": "alice", "groups": ["ops"], "uid": "7", "extra": {"scopes": ["a"]}, "nonResourceAttributes": asked}
    return {"status": {"allowed": right == wanted}}


class Cluster:
    """`Reviewer`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: ModelCacheError | None = None

    def post(self, path: str, body: dict[str, Any], cancel: Cancellation) -> dict[str, Any]:
        self.asked.append(body["kind"])
        if self.error is not None:
            raise self.error
        return reviewed(path, body["spec"])


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_yes_and_a_no_are_believed_for_a_while_and_silence_is_not() -> None:
    cluster, clock = Cluster(), Clock()
    reviews = Reviews(cluster, clock=clock)
    admit = by(reviews)

    assert admit("Bearer good", "/modelcache/list") is Verdict.ALLOWED
    assert admit("bearer  good", "/modelcache/list") is Verdict.ALLOWED
    assert cluster.asked == ["TokenReview", "SubjectAccessReview"]
    assert admit("Bearer weak", "/modelcache/list") is Verdict.FORBIDDEN
    for header in (None, "", "Basic Z29vZA==", "Bearer", "Bearer nobody", f"Bearer {'x' * 100_000}"):
        assert admit(header, "/modelcache/list") is Verdict.UNKNOWN
    asked = len(cluster.asked)
    cluster.error = OriginBusy("away")
    assert admit("Bearer good", "/modelcache/list") is Verdict.ALLOWED
    with pytest.raises(OriginBusy):
        admit("Bearer good", "/modelcache/metrics")  # another path is another question
    clock.now_s = TTL_S[True] + 1
    with pytest.raises(OriginBusy):
        admit("Bearer good", "/modelcache/list")
    cluster.error = None
    assert admit("Bearer good", "/modelcache/list") is Verdict.ALLOWED
    assert len(cluster.asked) > asked


def test_strangers_tokens_are_no_load() -> None:
    cluster = Cluster()
    reviews = Reviews(cluster)
    for number in range(3 * KEPT):
        reviews.verdict(f"token {number}", "/modelcache/list")
    assert len(reviews._known) == KEPT

    def held(depth: int) -> None:
        def post(path: str, body: dict[str, Any], cancel: Cancellation) -> dict[str, Any]:
            held(depth - 1)
            return {}

        cluster.post = post  # type: ignore[method-assign]
        if depth == 0:
            with pytest.raises(AgentBusy):
                reviews.verdict("one more", "/modelcache/list")
        else:
            reviews.verdict(f"at once {depth}", "/modelcache/list")

    held(AT_ONCE)


# -- a real agent --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[FaultServer]:
    def answer(call: Call) -> None:
        body = json.loads(call.received.body)
        said = reviewed(call.received.target, body["spec"])
        assert call.received.headers["authorization"] == "Bearer of-the-agent"
        call.reply(Reply(201, {"Content-Type": "application/json"}, json.dumps(said).encode()))

    with FaultServer() as server:
        for path in (TOKEN_REVIEWS, ACCESS_REVIEWS):
            server.fail(path, answer)
        yield server


@pytest.fixture
def node(tmp_path: Path, cluster: FaultServer) -> Iterator[RunningAgent]:
    (tmp_path / "token").write_text("of-the-agent\n")
    place = ["--api-server", cluster.endpoint, "--api-token", str(tmp_path / "token"), "--http-socket", str(tmp_path / "h.sock")]
    with agent(tmp_path, options=place) as running:
        yield running


def asked(node: RunningAgent, path: str, token: str | None = None) -> tuple[int, str, Any]:
    request = urllib.request.Request(node.http + path, headers={} if token is None else {"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def by_socket(path: Path, target: str, host: str = "localhost:9090") -> tuple[int, str]:
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    try:
        connection.request("GET", target, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_what_names_models_is_for_who_may_see_it(node: RunningAgent, cluster: FaultServer, tmp_path: Path) -> None:
    with FaultServer() as server, AgentClient(node.admin) as client:
        server.put("/private-model/weights", b"w" * 50_000)
        uri = f"{server.endpoint}/private-model/weights"
        client.ensure(uri, lease=("pod-of-somebody", 600.0))
    named = ("/modelcache/list", "/modelcache/metrics")
    for path in named:
        assert [asked(node, path, token)[0] for token in (None, "nobody", "weak", "good")] == [401, 401, 403, 200]
        assert "private-model" not in "".join(asked(node, path, token)[1] for token in (None, "nobody", "weak"))
    assert asked(node, named[0])[2]["WWW-Authenticate"] == 'Bearer realm="modelcache"'
    listed = json.loads(asked(node, named[0], "good")[1])
    [snapshot] = listed["snapshots"]
    assert (snapshot["uris"], snapshot["size_bytes"], snapshot["holders"]) == ([uri], 50_000, ["lease pod-of-somebody"])
    assert [event["event"] for event in listed["events"] if event.get("model") == uri] == ["fetched"]
    assert f'modelcache_model_size_bytes{{digest="{snapshot["digest"]}",model="{uri}"}} 50000.0' in asked(node, named[1], "good")[1]
    for path in ("/", "/modelcache/", "/modelcache/page.js", "/metrics", "/readyz"):
        assert "private-model" not in asked(node, path)[1]

    assert (tmp_path / "h.sock").stat().st_mode & 0o777 == 0o600
    for path in named:
        assert [by_socket(tmp_path / "h.sock", path, host)[0] for host in ("localhost", "127.0.0.1:9", "[::1]:9", "")] == [200] * 4
        for rebound in ("attacker.example:9090", "localhost.attacker.example", "x@attacker.example", "["):
            status, said = by_socket(tmp_path / "h.sock", path, rebound)
            assert (status, "private-model" in said) == (421, False)
    for path in (TOKEN_REVIEWS, ACCESS_REVIEWS):
        cluster.fail(path, lambda call: call.reply(Reply(500, {}, b"")))
    assert asked(node, named[0], "another")[0] == 503
    assert by_socket(tmp_path / "h.sock", named[0])[0] == 200
    assert asked(node, "/readyz")[0] == 200


def test_who_says_a_byte_now_and_then_keeps_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_module, "READ_TIMEOUT_S", 0.2)
    with Web((LOOPBACK, 0), Pages({"/x": lambda accept: (HTTPStatus.OK, TEXT, b"x")}, {}), nobody) as web:
        with socket.create_connection((LOOPBACK, web.port), timeout=30) as dripping:
            dripping.sendall(b"GET /x HTTP/1.1\r\n")
            dripping.settimeout(0.05)  # within which the next byte comes
            said, until_s = b"", Deadline.after(30.0)
            with suppress(ConnectionError):
                while not until_s.passed:
                    dripping.sendall(b"x")
                    try:
                        said = dripping.recv(100)
                        break
                    except TimeoutError:
                        continue
            assert (said, until_s.passed) == (b"", False)
        with urllib.request.urlopen(f"http://{LOOPBACK}:{web.port}/x", timeout=30) as answer:
            assert answer.read() == b"x"


@pytest.mark.parametrize("version", ["abc", "1.0.0", "", "9" * 400])
def test_metrics_are_shown_whatever_version_is_asked_for(version: str) -> None:
    status, kind, _ = web_module._metrics(CollectorRegistry(), f"application/openmetrics-text; version={version}")
    assert (status, kind.split(";")[0] in ("text/plain", "application/openmetrics-text")) == (HTTPStatus.OK, True)


def test_many_who_say_nothing_take_a_bounded_number_of_threads_and_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_module, "READ_TIMEOUT_S", 600.0)
    with Web((LOOPBACK, 0), Pages({"/x": lambda accept: (HTTPStatus.OK, TEXT, b"x")}, {}), nobody) as web, ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection((LOOPBACK, web.port), timeout=30))]
        for _ in range(web_module.CONNECTIONS + 8):
            silent.append(stack.enter_context(socket.create_connection((LOOPBACK, web.port), timeout=30)))
            with urllib.request.urlopen(f"http://{LOOPBACK}:{web.port}/x", timeout=30) as answer:
                assert answer.read() == b"x"
        assert [each.recv(1) for each in silent[:8]] == [b""] * 8  # the oldest were broken off, and not for their time
        silent[-1].sendall(b"GET /x HTTP/1.0\r\n\r\n")
        assert silent[-1].recv(8) == b"HTTP/1.0"


def test_who_goes_or_asks_nonsense_leaves_nothing_but_lines_of_the_log(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, gone, handled = threading.Event(), threading.Event(), threading.Semaphore(0)

    def fails(accept: str) -> Answer:
        raise ZeroDivisionError

    def late(accept: str) -> Answer:
        asked.set()
        gone.wait(30.0)
        return HTTPStatus.OK, TEXT, b"x" * 5_000_000

    with Web((LOOPBACK, 0), Pages({"/late": late, "/fails": fails}, {}), nobody) as web:
        handle = web._server.handle_error

        def handled_now(request: Any, address: Any) -> None:
            handle(request, address)
            handled.release()

        monkeypatch.setattr(web._server, "handle_error", handled_now)
        said = []
        for target in ("http://[/x", "/fails", "/late"):
            with socket.create_connection((LOOPBACK, web.port), timeout=30) as asking:
                asking.sendall(f"GET {target} HTTP/1.1\r\n\r\n".encode())
                if target == "/late":
                    assert asked.wait(30.0)
                    asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its end is a reset
                else:
                    said.append(asking.makefile("rb").readline()[:12])
        gone.set()
        assert handled.acquire(timeout=30.0)
        assert handled.acquire(timeout=30.0)
    assert said == [b"HTTP/1.0 404", b""]
    assert [record.message for record in caplog.records if record.levelno > logging.DEBUG] == ["an answer failed"]
    assert capfd.readouterr().err == ""


def half_and_no_more(call: Call) -> None:
    if call.received.method == "HEAD" or len(call.proper.body) < 1_000_000:
        call.reply(call.proper)
        return
    call.send(call.proper.head() + call.proper.body[:500_000])
    call.ended.wait(60.0)


@contextmanager
def on_its_way(node: RunningAgent, uri: str) -> Iterator[None]:
    """Somebody waits for a model that doesn't come."""
    cancel = Cancellation()

    def ask() -> None:
        with AgentClient(node.admin) as client, suppress(ModelCacheError):
            client.ensure(uri, cancel=cancel)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        cancel.cancel()
        thread.join()


def test_the_page_shows_it_in_a_browser_and_no_name_is_markup(node: RunningAgent, tmp_path: Path) -> None:
    with FaultServer() as server, AgentClient(node.admin) as client, Browser(tmp_path) as browser:
        server.put(f"/m/{NASTY}", b"n" * 3_000_000)
        uri = f"{server.endpoint}/m/{NASTY}"
        client.ensure(uri, lease=("<b>a pod</b>", 600.0))
        shown = client.list()[0].refs[0].key.uri

        browser.open(f"{node.http}/modelcache/")
        browser.until(lambda: bool(browser.run("return !document.getElementById('ask').hidden")), "the question for a token")
        assert "/m/" not in browser.text("body")
        browser.write("#token", "weak")
        browser.click("#ask button")
        browser.until(lambda: "may not see" in browser.text("#state"), "a refusal")
        browser.write("#token", "good")
        browser.click("#ask button")
        browser.until(lambda: shown in browser.text("#cached"), "the model")

        assert "2.9 MiB" in browser.text("#cached")
        assert "lease <b>a pod</b>" in browser.text("#cached")
        assert "fetched" in browser.text("#events")
        assert "available" in browser.text("#room")
        assert browser.text("#moving tbody") == "none"
        server.put("/m/slow", b"s" * 5_000_000)
        server.fail("/m/slow", half_and_no_more)
        with on_its_way(node, f"{server.endpoint}/m/slow"):
            browser.until(lambda: f"{server.endpoint}/m/slow fetching" in browser.text("#moving"), "the model on its way")
            assert "4.8 MiB" in browser.text("#moving")
            assert (
                f'modelcache_model_wanted_bytes{{model="{server.endpoint}/m/slow"}} 5e+06' in asked(node, "/modelcache/metrics", "good")[1]
            )
        assert browser.run("return document.querySelectorAll('main img, main b').length") == 0
        assert "good" not in browser.run("return location.href + document.cookie + Object.keys(localStorage) + Object.keys(sessionStorage)")
        refusals = [said for said in browser.complaints() if "401" not in said and "403" not in said]
        assert refusals == []
        browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.evil = 1\">')")
        browser.until(lambda: any("Content Security Policy" in said for said in browser.complaints()), "the policy's refusal")
        assert browser.run("return window.evil === undefined")
