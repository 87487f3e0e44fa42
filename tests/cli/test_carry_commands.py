"""`modelcache export`, `import` and `prewarm`: what they print, leave and exit with."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache.chunks import CHUNK_BYTES
from modelcache.cli.app import COMMANDS
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.many_view import Looks
from modelcache.cli.progress_view import Look
from modelcache.testing.audit import Moment, audit
from modelcache.testing.fault_server import FaultServer
from tests.cli.conftest import WEIGHTS, stalled_from
from tests.cli.executable import EXECUTABLE, Done, Executable
from tests.cli.test_json_documents import documented, keys

Inside = Callable[..., Done]


@pytest.fixture
def elsewhere(cli: Executable, tmp_path: Path) -> Executable:
    """Another machine: a store of its own."""
    return Executable(tmp_path / "elsewhere")


def test_there_and_back_with_the_documented_keys(inside: Inside, cli: Executable, model: Path, sibling: Path, tmp_path: Path) -> None:
    inside("pull", "-q", model, sibling)
    file = tmp_path / "models.tar"

    exported = inside("export", "--json", model, sibling, file)
    there = inside("import", "--json", "--pin", "--root", tmp_path / "there", file)

    assert (exported.code, there.code) == (0, 0)
    assert set(keys(exported.document)) == documented("export")
    assert set(keys(there.document)) == documented("import") - {"snapshots[].superseded[]"}
    assert exported.document["size_bytes"] == file.stat().st_size
    assert {snapshot["uris"][0] for snapshot in there.document["snapshots"]} == {f"file://{model}", f"file://{sibling}"}
    shown = inside("show", "--json", "--root", tmp_path / "there", model).document
    assert [lease["kind"] for lease in shown["leases"]] == ["pin"]
    offline = inside("pull", "--offline", "-q", "--root", tmp_path / "there", model)
    assert (Path(offline.out.strip()) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("stdout", ["-", "/dev/stdout"])
def test_through_a_pipe(cli: Executable, elsewhere: Executable, model: Path, stdout: str) -> None:
    cli("pull", "-q", model)
    with cli.start("export", "--all", stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as exporting:
        done = subprocess.run(
            [EXECUTABLE, "import", "-"], stdin=exporting.stdout, env=elsewhere.variables(), capture_output=True, text=True, timeout=60
        )
        _, notes = exporting.communicate()

    assert (done.returncode, exporting.returncode) == (0, 0)
    assert done.stdout.strip() == elsewhere("path", model).out.strip()
    assert "exported 1 model, 2 files" in notes
    assert audit(elsewhere.root, Moment.SETTLED) == []


def test_a_reader_that_leaves_is_no_error_of_ours(cli: Executable, model: Path) -> None:
    cli("pull", "-q", model)
    with cli.start("export", "--all", "-", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as exporting:
        assert exporting.stdout is not None
        exporting.stdout.read(10)
        exporting.stdout.close()
        assert exporting.stderr is not None
        assert "error" not in exporting.stderr.read()
        assert exporting.wait() == ExitCode.READER_GONE


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "x.tar"], "or all of them with --all"),
        (["export", "--all", "deadbeef", "x.tar"], "--all exports everything"),
        (["export", "--json", "--all", "-"], "stdout"),
        (["prewarm"], "--file"),
        (["prewarm", "-f", "no-such-list"], "the list can't be read"),
        (["import", "no-such-file"], "No such file"),
    ],
)
def test_calls_that_make_no_sense(inside: Inside, arguments: list[str], said: str) -> None:
    done = inside(*arguments)

    assert done.code == ExitCode.USAGE
    assert said in (done.document["error"]["message"] if "--json" in arguments else done.err)


def test_a_damaged_file_is_refused_by_name(inside: Inside, model: Path, tmp_path: Path) -> None:
    inside("pull", "-q", model)
    inside("export", "-q", model, tmp_path / "f.tar")
    os.truncate(tmp_path / "f.tar", 5_000_000)

    done = inside("import", "--root", tmp_path / "there", tmp_path / "f.tar")

    assert done.code == ExitCode.INTEGRITY
    assert str(tmp_path / "f.tar") in done.err
    assert audit(tmp_path / "there", Moment.SETTLED) == []


def test_ctrl_c_leaves_nothing_of_an_import(cli: Executable, elsewhere: Executable, model: Path, tmp_path: Path) -> None:
    cli("pull", "-q", model)
    cli("export", "-q", model, tmp_path / "f.tar")
    half = (tmp_path / "f.tar").read_bytes()[:5_000_000]
    with elsewhere.start("import", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as importing:
        assert importing.stdin is not None
        assert importing.stderr is not None
        assert os.write(importing.stdin.fileno(), half) == len(half)
        assert "importing" in importing.stderr.readline()
        importing.send_signal(signal.SIGINT)
        said = importing.stderr.read()

    assert importing.returncode == ExitCode.CANCELLED
    assert "nothing of it is kept" in said
    assert audit(elsewhere.root, Moment.SETTLED) == []


# -- prewarm ----------------------------------------------------------------------------------------------------------


def test_prewarm_goes_on_after_failures(inside: Inside, model: Path, sibling: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"# models\n{model}\n\n  {tmp_path}/none\n{model}/\n", encoding="utf-8")

    done = inside("prewarm", "--json", "--pin", "-f", tmp_path / "list", sibling, "s3://bad bucket/x")

    assert done.code == ExitCode.PARTLY
    document = done.document
    extra = {"outcomes[].error.address", "outcomes[].error.hint", "outcomes[].error.got"}
    assert set(keys(document)) - extra == documented("prewarm")
    outcomes = [(outcome["uri"], outcome.get("error", {}).get("code")) for outcome in document["outcomes"]]
    assert outcomes == [
        (f"file://{sibling}", None),
        ("s3://bad bucket/x", "invalid-uri"),
        (f"file://{model}", None),
        (f"file://{tmp_path}/none", "not-found"),
    ]
    assert [len(snapshot["leases"]) for snapshot in inside("ls", "--json").document["snapshots"]] == [1, 1]
    again = inside("prewarm", model, sibling)
    assert (again.code, len(again.out.splitlines())) == (ExitCode.OK, 2)
    assert "2 of 2 models here, 0 failed; fetched 0 B" in again.err


def test_prewarm_reads_stdin_and_tells_each_failure(cli: Executable, model: Path, tmp_path: Path) -> None:
    done = cli("prewarm", "-f", "-", stdin=f"{model}\n{tmp_path}/none\n")

    assert done.code == ExitCode.PARTLY
    assert f"warning: file://{tmp_path}/none: no such file or directory" in done.err
    assert Path(done.out.strip()).is_dir()


def test_a_prewarm_that_doesn_t_fit_fetches_nothing(inside: Inside, model: Path, sibling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sibling / "model.safetensors").write_bytes(WEIGHTS[::-1])
    monkeypatch.setenv("MODELCACHE_MAX_BYTES", "12MiB")

    done = inside("prewarm", "--json", model, sibling)

    assert done.code == ExitCode.NO_ROOM
    assert done.document["error"]["needed_bytes"] >= 2 * len(WEIGHTS)
    assert inside("ls", "--json").document["snapshots"] == []


def test_a_cancelled_prewarm_goes_on_where_it_stopped(cli: Executable, server: FaultServer, model: Path) -> None:
    server.put("/model.bin", WEIGHTS)
    server.fail("/model.bin", stalled_from(CHUNK_BYTES))
    with cli.start("prewarm", "--json", model, f"{server.endpoint}/model.bin", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        while '"fetching"' not in (line := process.stderr.readline()) or "model.bin" not in line:
            assert line, "it ended before it fetched"
        process.send_signal(signal.SIGINT)
        out = process.stdout.read()

    assert process.returncode == ExitCode.CANCELLED
    assert '"code": "cancelled"' in out
    server.fail("/model.bin", lambda call: call.reply(call.proper))
    done = cli("prewarm", "--json", model, f"{server.endpoint}/model.bin")
    assert done.code == ExitCode.OK
    assert done.document["outcomes"][1]["digest"]


def test_the_sum_of_many_looks() -> None:
    looks = Looks(4)
    looks.add(0, Look("a", "fetching", 50, 100, 10.0, None))
    looks.add(1, Look("b", "done", 300, 300, None, None))

    found = looks.add(2, Look("c", "resolving", 0, 0, None, None))

    assert (found.ended, found.pieces, found.bytes_done, found.bytes_total, found.share) == (1, 4, 350, 400, 1.5 / 4)
    assert [look.title for look in found.running] == ["a", "c"]
    assert found.words() == "1 of 4 done, 350 B of 400 B, 10 B/s"


def test_the_commands_have_their_names() -> None:
    assert {"export", "import", "prewarm"} <= {function.__name__ for function, _ in COMMANDS}
