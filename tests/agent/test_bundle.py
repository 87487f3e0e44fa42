"""What `doctor --bundle` writes of a node with an agent, and the agent's log."""

from __future__ import annotations

import io
import json
import logging
import re
import tarfile
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from daemonset.__main__ import main
from daemonset.logs import KEPT, TEXT_CHARACTERS, Recent, entry_of, logging_to
from modelcache.agent.client import AgentClient
from modelcache.agent.log import LogEntry
from modelcache.agent.v1 import agent_pb2 as pb
from modelcache.agent.v1.agent_pb2_grpc import AgentStub
from modelcache.cli.bundle import Gathered, write_bundle
from modelcache.cli.findings import fine
from modelcache.errors import AccessDenied, BadConfig, ModelCacheError
from modelcache.testing.agents import agent
from modelcache.testing.fault_server import FaultServer
from tests.cli.executable import Executable
from tests.docs.documents import ROOT, between, rows

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI-K7MDENG-bPxRfiCY",
    "HF_TOKEN": "hf_aBcDeFgHiJkLmNoPqRsTuVwX",
    "HTTPS_PROXY": "http://proxyuser:pr0xyhunter2@127.0.0.1:9",
    "MODELCACHE_FSSPEC_ABFS": '{"account_key": "azure-account-key-1234"}',
}
HIDDEN = ("wJalrXUtnFEMI", "hf_aBcDeFgH", "pr0xyhunter2", "azure-account-key", "urihunter2", "sigsigsig", "headerhunter2")


def parts_of(bundle: Path) -> dict[str, str]:
    with tarfile.open(bundle) as archive:
        found = {entry.name: archive.extractfile(entry) for entry in archive.getmembers()}
        return {name.rpartition("/")[2]: file.read().decode() for name, file in found.items() if file is not None}


def test_a_bundle_tells_what_the_agent_did_and_no_secret(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[http.headers.host]\nX-Api-Key = "headerhunter2"\n')
    config.chmod(0o600)
    bundle = tmp_path / "bundle.tar.gz"
    variables = {"MODELCACHE_CONFIG": str(config), **SECRETS}
    with agent(tmp_path, variables) as node, FaultServer() as server, AgentClient(node.admin) as client:
        server.put("/model/weights", b"w" * 70_000)
        uri = f"http://user:urihunter2@127.0.0.1:{server.port}/model/weights?X-Amz-Signature=sigsigsig"
        client.ensure(uri)
        with pytest.raises(ModelCacheError):
            client.ensure(uri.replace("/model/", "/nothing/"))
        with AgentClient(node.driver) as driver, pytest.raises(AccessDenied):
            driver.recent()
        done = Executable(node.root)("doctor", "--bundle", bundle, "--agent", node.admin, "--json", **variables)
    parts = parts_of(bundle)
    lines = [json.loads(line) for line in parts["log.jsonl"].splitlines()]
    [fetched] = [line for line in lines if line.get("event") == "fetched"]
    [failed] = [line for line in lines if line.get("event") == "failed"]

    assert done.document["bundle"] == str(bundle)
    assert bundle.stat().st_mode & 0o777 == 0o600
    assert [secret for secret in HIDDEN for text in (*parts.values(), (tmp_path / "agent.log").read_text()) if secret in text] == []
    assert fetched["model"] == f"http://127.0.0.1:{server.port}/model/weights"
    assert fetched["fields"]["bytes_fetched"] == 70_000
    assert (failed["error"], failed["model"]) == ("not-found", f"http://127.0.0.1:{server.port}/nothing/weights")
    assert fetched["request"] != failed["request"]
    settings = {one["key"]: one for one in json.loads(parts["settings.json"])["settings"]}
    assert (settings["http.headers"]["place"], settings["http.headers"]["name"]) == ("file", str(config))
    assert json.loads(parts["agent.json"])["snapshots"][0]["size_bytes"] == 70_000
    assert json.loads(parts["versions.json"])["distributions"]["grpcio"]


def test_a_request_keeps_the_id_that_its_caller_gave_it(tmp_path: Path) -> None:
    with agent(tmp_path) as node, grpc.insecure_channel(f"unix:{node.admin}") as channel, AgentClient(node.admin) as client:
        stub = AgentStub(channel)
        for named in ("pod-7:volume.1", "no id, but a sentence"):
            with pytest.raises(grpc.RpcError):
                stub.Show(pb.ShowRequest(name="http://127.0.0.1:1/x"), timeout=10, metadata=(("x-request-id", named),))
        refused = [entry.request for entry in client.recent() if entry.event == "refused"]

    assert refused[0] == "pod-7:volume.1"
    assert refused[1] is not None
    assert refused[1].isalnum()


def test_a_bundle_is_bounded_whatever_the_agent_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge: dict[str, object] = {"snapshots": [{"uri": f"s3://bucket/{number}/" + "x" * 1000} for number in range(500)], "root": "/r"}
    log = [LogEntry(float(number), "info", "x", "y" * 2000).as_dict() for number in range(200)]
    monkeypatch.setattr("modelcache.cli.bundle._of_agent", lambda settings: (huge, log))
    monkeypatch.setattr("modelcache.cli.bundle.PART_BYTES", most := 100_000)
    settings: Any = type("Settings", (), {"values": ()})()
    write_bundle(tmp_path / "b.tgz", Gathered([fine("a", "b")], settings, {}))
    parts = parts_of(tmp_path / "b.tgz")

    assert max(map(len, parts.values())) <= most
    assert json.loads(parts["agent.json"])["snapshots_cut"]
    assert json.loads(parts["log.jsonl"].splitlines()[-1])["time"] == log[-1]["time"]
    with pytest.raises(BadConfig, match="can't be written"):
        write_bundle(tmp_path / "absent" / "b.tgz", Gathered([], None, {}))


@pytest.mark.parametrize(
    "secret",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "hf_abcdefghijklmnopqrstuvwx",
        "ghp_abcdefghijklmnopqrstuvwxyz",
        "ya29.a0AfH6SMBx-abc",
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
        "MIIEowIBAAKCAQEA7",
        "s3cr3tv4lue",
    ],
)
def test_no_line_of_the_log_holds_a_secret_of_any_shape(secret: str) -> None:
    said = {
        "MIIEowIBAAKCAQEA7": f"-----BEGIN RSA PRIVATE KEY-----\n{secret}\n-----END RSA PRIVATE KEY-----",
        "s3cr3tv4lue": f"Authorization: Basic {secret} https://u:{secret}@h/p?sig={secret} password={secret}",
    }.get(secret, f"a library said {secret} here")
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "said %s", (said,), None)
    record.fields = {"text": said}
    record.model = f"https://{secret}@host/path"

    entry = entry_of(record, {"SOME_TOKEN": secret} if secret == "s3cr3tv4lue" else {})

    assert secret not in json.dumps(entry.as_dict())


def test_what_is_kept_of_the_log_does_not_depend_on_what_is_written() -> None:
    for level, written in (("warning", 0), ("debug", 2)):
        stream = io.StringIO()
        with logging_to(stream, level=level) as recent:
            logging.getLogger("x").info("info")
            logging.getLogger("x").debug("debug")
        assert [entry.message for entry in recent.entries()] == ["info"]
        assert len(stream.getvalue().splitlines()) == written


def test_what_ends_a_thread_or_the_agent_is_a_line_of_the_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: object) -> int:
        raise ZeroDivisionError("password=hunter2hunter2")

    stream = io.StringIO()
    with logging_to(stream) as recent:
        thread = threading.Thread(target=fails, name="agent follower")
        thread.start()
        thread.join()
    [entry] = recent.entries()
    assert (entry.level, "agent follower" in entry.message) == ("critical", True)
    monkeypatch.setattr("daemonset.__main__._run", fails)
    assert main([]) == 1
    for said in (stream.getvalue(), capsys.readouterr().err):
        assert "ZeroDivisionError" in json.loads(said)["traceback"]
        assert "hunter2" not in said


def test_the_log_in_memory_is_bounded() -> None:
    recent = Recent({})
    for number in range(KEPT + 10):
        recent.emit(logging.LogRecord("x", logging.INFO, __file__, 1, f"{number} " + "x" * 100_000, (), None))

    assert len(recent.entries()) == KEPT
    assert recent.entries()[-1].message.startswith(f"{KEPT + 9} ")
    assert max(len(entry.message) for entry in recent.entries()) == TEXT_CHARACTERS


def test_the_document_names_every_event() -> None:
    text = (ROOT / "docs/agent.md").read_text(encoding="utf-8")
    documented = {name for row in rows(between(text, "log events")) for name in re.findall(r"`(\w+)`", row[0])}
    sources = [path.read_text(encoding="utf-8") for part in ("daemonset", "modelcache") for path in (ROOT / part).rglob("*.py")]
    logged = {name for source in sources for name in re.findall(r'extra=\{\s*"event": "(\w+)"', source)}

    assert logged | {"hit", "fetched"} == documented


def test_the_document_names_the_fields_of_a_line() -> None:
    text = (ROOT / "docs/agent.md").read_text(encoding="utf-8")
    entry = LogEntry(0.0, "info", "x", "m", "e", "u", "r", "c", {"a": 1}, "t")

    assert [row[0].strip("`") for row in rows(between(text, "log fields"))] == list(entry.as_dict())
