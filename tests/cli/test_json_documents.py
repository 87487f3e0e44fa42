"""The keys that `docs/cli.md` promises are the keys that commands print, no more and no fewer."""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from modelcache.chunks import CHUNK_BYTES
from modelcache.cli.app import COMMANDS
from modelcache.testing.crash import flip_bit
from modelcache.testing.fault_server import FaultServer
from tests.cli.conftest import WEIGHTS, stalled_from
from tests.cli.executable import Executable
from tests.cli.test_commands import damage
from tests.docs.documents import ROOT, between, rows

TEXT = (ROOT / "docs/cli.md").read_text(encoding="utf-8")


def documented(command: str) -> set[str]:
    return {row[0].strip("`") for row in rows(between(TEXT, f"json {command}"))}


def keys(value: object, prefix: str = "") -> Iterator[str]:
    """Where each plain value of a document is: `a.b`, `a[].b`."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from keys(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from keys(inner, f"{prefix}[]")
    else:
        yield prefix


def test_the_documents_of_a_model_s_life_have_the_documented_keys(cli: Executable, server: FaultServer, sibling: Path) -> None:
    server.put("/model.bin", WEIGHTS, headers={"Repr-Digest": _repr_digest(WEIGHTS)})
    url = f"{server.endpoint}/model.bin"
    documents = {"pull": cli("--json", "pull", url).document, "pin": cli("--json", "pin", url).document}
    for command in ("ls", "show", "path", "unpin"):
        name = [url] if command != "ls" else []
        documents[command] = cli("--json", command, *name).document
    documents["df"] = cli("--json", "df").document
    documents["version"] = cli("--json", "--version").document
    documents["dedupe"] = cli("--json", "dedupe").document
    documents["rm"] = cli("--json", "rm", url).document
    cli("pull", "-q", sibling)
    documents["gc"] = cli("--json", "gc", "--need", "9MiB", MODELCACHE_MAX_BYTES="10MiB").document

    assert documents["show"]["files"][0]["digest"] == "stated"
    assert {command: set(keys(document)) for command, document in documents.items()} == {
        command: documented(command) for command in documents
    }


def _repr_digest(data: bytes) -> str:
    """RFC 9530."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def test_a_damage_has_the_documented_keys(cli: Executable, model: Path, sibling: Path) -> None:
    cli("pull", "-q", model, sibling)
    damage(cli, model)
    cli("pin", sibling)

    document = cli("verify", "--json").document

    assert set(keys(document)) == documented("verify")


def test_a_repair_has_the_documented_keys(cli: Executable, model: Path, sibling: Path) -> None:
    """One snapshot withdrawn and put back, one held and mended; then one that its origin no longer has."""
    cli("pull", "-q", model, sibling)
    cli("pin", sibling)
    damage(cli, model)
    ref = next(path for path in (cli.root / "refs").iterdir() if str(sibling).encode() in path.read_bytes())
    flip_bit(ref, ref.read_bytes().index(b'"validator"') + 14)
    document = cli("verify", "--json", "--repair").document
    assert [len(document[name]) for name in ("repaired", "restored", "mended", "resolved", "unrepaired")] == [1, 1, 1, 1, 0]
    found = set(keys(document))

    damage(cli, model)
    shutil.rmtree(model)
    shutil.rmtree(sibling)
    done = cli("verify", "--json", "--repair")

    assert done.code == 6
    found |= set(keys(done.document))
    assert found == documented("verify") | documented("repair")


def test_settings_have_the_documented_keys(cli: Executable) -> None:
    assert set(keys(cli("config", "show", "--json").document)) == documented("config")


def test_findings_have_the_documented_keys(cli: Executable) -> None:
    assert set(keys(cli("doctor", "--json").document)) == documented("doctor")


def test_an_error_has_the_documented_keys(cli: Executable) -> None:
    document = cli("path", "--json", "0123456789").document
    extra = {"error.retryable", "error.hint", "error.address"}

    assert set(keys(document)) - extra == documented("error")
    assert all(f"`{name}`" in TEXT for name in extra)


def test_progress_events_have_the_documented_keys(cli: Executable, server: FaultServer) -> None:
    server.put("/model.bin", WEIGHTS)
    server.fail("/model.bin", stalled_from(CHUNK_BYTES))

    done = cli("pull", "--json", f"{server.endpoint}/model.bin", MODELCACHE_STALL_TIMEOUT_S="0.5", MODELCACHE_RETRY_DEADLINE_S="0.5")

    assert done.code == 5
    assert done.events
    assert {frozenset(event) for event in done.events} == {frozenset(documented("progress"))}
    assert {event["event"] for event in done.events} == {"progress"}


def test_every_command_is_documented() -> None:
    shown = [row[0].strip("`").split()[0] for row in rows(between(TEXT, "commands"))]

    assert sorted(shown) == sorted(function.__name__ for function, _ in COMMANDS)
