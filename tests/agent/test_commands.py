"""Commands through a real agent and straight to its store: the same documents, the same exit codes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from modelcache.agent.client import AgentClient
from modelcache.agent.remote import RemoteCache
from modelcache.cache import ModelCache
from modelcache.chunks import CHUNK_BYTES
from modelcache.cli.main import main
from modelcache.errors import Cancelled, InvalidUri, NotFound
from modelcache.fetch.progress import Phase, Progress
from modelcache.patience import Cancellation
from modelcache.testing.agents import ROOMY, RunningAgent, agent
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.faults import status
from tests.cli.conftest import WEIGHTS, stalled_from
from tests.cli.executable import DEADLINE_S, Done
from tests.cli.test_json_documents import TEXT, keys
from tests.docs.documents import between, rows

SETTINGS = {"MODELCACHE_MAX_BYTES": "64MiB", "MODELCACHE_RETRY_DEADLINE_S": "0.2", "MODELCACHE_FSSPEC_MEMORY": "{}"}
"""The agent's, and of commands that ask the store: those that ask the agent have none."""
VOLATILE = re.compile(r'("(?:id|elapsed_s|rate_bytes_per_s|\w+_at_s|free_bytes|available_bytes|retry_after_s)": )("[^"]*"|[0-9.e+-]+|null)')
Run = Callable[..., Done]


@dataclass(frozen=True)
class Ways:
    """One command line, through the agent, past it, and as if nobody had heard of it."""

    agent: Run
    store: Run
    usual: Run


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with agent(tmp_path_factory.mktemp("c"), SETTINGS) as running:
        yield running


@pytest.fixture
def ways(node: RunningAgent, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ways:
    for name in os.environ:
        if name.startswith(("AWS_", "CLOUDSDK_", *ROOMY)):
            monkeypatch.delenv(name)  # credentials and limits of its own take a command to the store
    monkeypatch.setenv("MODELCACHE_ROOT", str(node.root))

    def runs(environ: Mapping[str, str]) -> Run:
        def run(*arguments: object) -> Done:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environ.items():
                    patch.setenv(name, value)
                code = main([*map(str, arguments)])
            shown = capsys.readouterr()
            return Done(code, shown.out, shown.err)

        return run

    return Ways(runs({"MODELCACHE_AGENT": str(node.admin)}), runs({"MODELCACHE_AGENT": "none", **ROOMY, **SETTINGS}), runs({}))


def seen(run: Run, commands: Sequence[Sequence[object]]) -> list[tuple[int, Any]]:
    """Exit code and document of each command, without what no two runs share."""
    found = []
    for command in commands:
        done = run("--json", "-v", *command)
        assert '"event": "store"' not in done.err, command
        found.append((done.code, json.loads(VOLATILE.sub(r"\1null", done.out))))
    return found


def test_a_model_s_life_reads_the_same(ways: Ways, server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the agent is elsewhere
    server.put("/m/weights", WEIGHTS, headers={"Repr-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(WEIGHTS).digest()).decode()}:"})
    server.put("/m/second", b"2" * 1000)
    server.put("/m/huge", bytes(65 * 1024 * 1024))
    url, second, missing, huge = (f"{server.endpoint}/m/{name}" for name in ("weights", "second", "missing", "huge"))
    local = tmp_path / "local"
    local.mkdir()
    (local / "config.json").write_bytes(b"{}")
    (tmp_path / "list").write_text(f"{second}\n# a remark\nlocal\nnothing://x\nno uri at all://\n{missing}\n")
    commands: list[Sequence[object]] = [
        ("pull", url, second),
        ("pull", url),
        ("pull", "--refresh", "auto", url),
        ("pull", "--offline", url),
        ("pull", "local"),
        ("ls",),
        ("show", url),
        ("show", "local"),
        ("path", second),
        ("df",),
        ("verify", url),
        ("verify",),
        ("pin", url, "--holder", "me"),
        ("pin", url, "--holder", ""),
        ("pin", url, "--holder", "\udcff"),
        ("unpin", url, "--holder", "\udcff"),
        ("prewarm", "\udcff", second),
        ("pull", huge),
        ("prewarm", huge),
        ("rm", url),
        ("rm", second, url),
        ("unpin", url, "--holder", "you"),
        ("unpin", url),
        ("rm", "-n", url),
        ("prewarm", "-f", tmp_path / "list", "--pin"),
        ("unpin", second),
        ("unpin", "local"),
        ("rm", url, second, local),
        ("ls",),
    ]
    through = seen(ways.agent, commands)
    assert [code for code, _ in through] == [0] * 13 + [2, 0, 0, 11, 7, 7, 9, 9, 0, 0, 0, 11, 0, 0, 0, 0]
    assert through[6][1]["files"][0]["digest"] == "stated"
    assert "are held, by `me`" in through[17][1]["error"]["message"]
    assert through == seen(ways.store, commands)


def test_a_prewarm_that_is_broken_off_tells_the_same(node: RunningAgent, server: FaultServer) -> None:
    server.put("/m/first", b"1" * 1000)
    server.put("/m/stalls", WEIGHTS)
    server.fail("/m/stalls", stalled_from(CHUNK_BYTES))
    first, stalls, missing = (f"{server.endpoint}/m/{name}" for name in ("first", "stalls", "missing"))

    def told(cache: RemoteCache | ModelCache) -> list[tuple[object, ...]]:
        looks: dict[int, Progress] = {}
        cancel = Cancellation()

        def look(number: int, seen: Progress) -> None:
            looks[number] = seen
            if len(looks) == 2 and looks[0].phase is Phase.DONE and looks[1].bytes_done >= CHUNK_BYTES:
                cancel.cancel()

        report = cache.prewarm([first, stalls, "s3://", first, missing], jobs=2, progress=look, cancel=cancel)
        assert report.cancelled
        assert [type(each.error) for each in report.outcomes] == [type(None), Cancelled, InvalidUri, NotFound]
        return [(each.uri, each.snapshot, str(each.error), each.progress is None) for each in report.outcomes]

    with RemoteCache(node.admin) as remote, ModelCache(node.root) as cache:
        through = told(remote)
        assert [uri for uri, *_ in through] == [first, stalls, "s3://", missing]
        assert through == told(cache)


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (2, ("pull", "s3://")),
        (2, ("pull", "nothing://x")),
        (3, ("pull", "{}/missing")),
        (3, ("pull", "--offline", "{}/weights")),
        (3, ("show", "{}/weights")),
        (3, ("path", "0123456789")),
        *[(3, (command, name)) for command in ("show", "rm", "verify", "pin", "unpin") for name in ("0123456", "ABCDEF01")],
        (3, ("unpin", "sha256:" + "0" * 64)),
        (3, ("verify", "{}/weights")),
        (4, ("pull", "{}/secret")),
        (5, ("pull", "{}/busy")),
        (6, ("pull", "{}/lies")),
        (7, ("pull", "{}/huge")),
        (7, ("prewarm", "{}/huge", "{}/weights")),
    ],
)
def test_errors_read_the_same(ways: Ways, server: FaultServer, code: int, command: Sequence[str]) -> None:
    server.put("/weights", b"w" * 1000)
    server.put("/huge", bytes(65 * 1024 * 1024))
    server.put("/lies", b"l" * 1000, headers={"Repr-Digest": f"sha-256=:{'A' * 43}=:"})
    for path, told in (("/secret", 403), ("/busy", 503)):
        server.put(path, b"x")
        server.fail(path, status(told))
    asked = [tuple(word.format(server.endpoint) for word in command)]
    through = seen(ways.agent, asked)
    assert through[0][0] == code
    assert through == seen(ways.store, asked)


def test_damage_reads_the_same(ways: Ways, server: FaultServer) -> None:
    """It is found once: then its snapshot is out of service. So each way gets its own."""
    found = []
    for run in (ways.agent, ways.store):
        server.put("/d/weights", b"d" * 100_000)
        place = Path(run("-q", "pull", f"{server.endpoint}/d/weights").out.strip()) / "weights"
        place.chmod(0o644)
        place.write_bytes(b"e" * 100_000)
        place.chmod(0o444)
        url = f"{server.endpoint}/d/weights"
        found.append(seen(run, [("verify", url), ("verify",), ("verify", url), ("pull", url), ("verify", url)]))
        assert run("verify", "-q", "--repair").code == 0
        run("rm", f"{server.endpoint}/d/weights")
    assert [code for code, _ in found[0]] == [6, 6, 6, 0, 0]
    assert found[0] == found[1]


# -- which of the two it is ---------------------------------------------------------------------------------------------


def test_an_agent_that_was_named_is_asked_or_the_command_fails(
    ways: Ways, node: RunningAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["ls"], ["df"], ["pull", "https://host/x"], ["top"]):
        done = ways.store("--json", "--agent", tmp_path / "no.sock", *command)
        assert (done.code, done.document["error"]["code"]) == (5, "agent-unreachable")
    other = ways.agent("--json", "--root", tmp_path / "other", "ls")
    assert (other.code, other.document["error"]["code"], other.document["error"]["got"]) == (2, "bad-config", str(node.root))
    monkeypatch.delenv("MODELCACHE_ROOT")
    usual = ways.agent("--json", "pull", "https://host/x")
    assert (usual.code, usual.document["error"]["hint"]) == (2, f"name its root, too: `--root {node.root}`")
    assert ways.store("--json", "top").document["error"]["code"] == "bad-config"


def test_the_usual_socket_is_asked_where_it_keeps_this_store(
    ways: Ways, node: RunningAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def directly(*arguments: object) -> list[str]:
        """Why the store itself was asked; nothing: the agent was."""
        done = ways.usual("--json", "-v", *arguments)
        assert done.code == 0, done
        return [event["why"] for event in done.events if event["event"] == "store"]

    local = tmp_path / "local"
    local.write_bytes(b"x")
    monkeypatch.setattr("modelcache.config.AGENT_SOCKET", node.admin)
    assert directly("pull", local) == []
    assert directly("ls") == []
    [why] = directly("--root", tmp_path / "other", "pull", local)
    assert "keeps another store" in why
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("MODELCACHE_S3_REGION", "eu-west-1")
    assert directly("ls") == []
    assert directly("pull", local) == []  # whose business is none of the two
    for command in ("pull", "prewarm"):
        [why] = directly(command, "--endpoint", "https://host", local)
        assert "(--endpoint)" in why
    refused = ways.usual("--json", "-v", "pull", "--endpoint", "http://127.0.0.1:9", "s3a://bucket/model")
    [why] = [event["why"] for event in refused.events if event["event"] == "store"]
    assert "(--endpoint, MODELCACHE_S3_REGION, AWS_ACCESS_KEY_ID)" in why
    silent = tmp_path / "silent"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(silent))  # as of an agent that was killed
    monkeypatch.setattr("modelcache.config.AGENT_SOCKET", silent)
    [why] = directly("ls")
    assert "nobody answers" in why


def test_doctor_asks_the_agent(ways: Ways, node: RunningAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finding() -> tuple[str, str, str | None]:
        findings = ways.agent("--json", "doctor").document["findings"]
        [found] = [(one["level"], one["message"], one["hint"]) for one in findings if one["check"] == "agent"]
        return found

    assert finding() == ("ok", f"{version('modelcache')} at {node.admin}", None)
    monkeypatch.setenv("MODELCACHE_ROOT", str(tmp_path / "other"))
    level, _, hint = finding()
    assert (level, hint) == ("fail", f"name its root, too: `--root {node.root}`")


def test_top_shows_what_is_kept_and_held(ways: Ways, node: RunningAgent, server: FaultServer) -> None:
    server.put("/t/weights", b"t" * 100_000)
    url = f"{server.endpoint}/t/weights"
    assert [ways.agent("-q", *command).code for command in (("pull", url), ("pin", url, "--holder", "me"))] == [0, 0]
    server.put("/t/stalls", WEIGHTS)
    server.fail("/t/stalls", stalled_from(CHUNK_BYTES))
    with AgentClient(node.admin) as client, ThreadPoolExecutor(1) as threads:
        begun, cancel = threading.Event(), Cancellation()
        fetch = threads.submit(
            client.ensure, f"{server.endpoint}/t/stalls", progress=lambda look: begun.set() if look.bytes_done else None, cancel=cancel
        )
        assert begun.wait(DEADLINE_S)
        document = ways.agent("top", "--json").document
        text = ways.agent("top", "--once").out
        cancel.cancel()
        with pytest.raises(Cancelled):
            fetch.result()
    documented = {row[0].strip("`") for row in rows(between(TEXT, "json top"))}
    assert documented - set(keys(document)) == {"denials[].code", "denials[].count"}
    assert set(keys(document)) <= documented
    assert document["root"] == str(node.root)
    [kept] = [each for each in document["snapshots"] if each["uris"] == [url]]
    assert [lease["holder"] for lease in kept["leases"]] == ["me"]
    shown = {line.split()[0]: line for line in text.splitlines() if line}
    assert f"at {node.admin}" in shown["agent"]
    assert shown["fetching"].endswith(f"{server.endpoint}/t/stalls")
    assert "pin me" in shown[kept["digest"].removeprefix("sha256:")[:12]]
    ways.agent("unpin", url)
