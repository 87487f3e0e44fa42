"""Every command by the real executable, on a real store."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache.testing.fault_server import FaultServer
from modelcache.units import format_bytes
from tests.cli.conftest import WEIGHTS
from tests.cli.executable import EXECUTABLE, Done, Executable


def test_pull_prints_the_path_alone_on_stdout_and_what_it_did_on_stderr(cli: Executable, model: Path) -> None:
    first = cli("pull", model)
    second = cli("pull", model)

    assert first.code == second.code == 0
    assert first.out == second.out
    snapshot = Path(first.out.removesuffix("\n"))
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == {path.name: path.read_bytes() for path in model.iterdir()}
    assert f"file://{model}: fetched 9.0 MiB, reused 0 B, 2 files in " in first.err.splitlines()[-1]
    assert f"file://{model}: hit: nothing fetched (9.0 MiB, 2 files, " in second.err.splitlines()[-1]


def test_a_quiet_pull_says_nothing_but_the_path(cli: Executable, model: Path) -> None:
    done = cli("pull", "-q", model)

    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)


def test_uris_are_pulled_in_order_and_the_first_failure_ends_it(cli: Executable, model: Path, sibling: Path, tmp_path: Path) -> None:
    done = cli("pull", "--json", model, tmp_path / "nowhere", sibling)

    assert done.code == 3
    assert [snapshot["uri"] for snapshot in done.document["snapshots"]] == [f"file://{model}"]
    assert done.document["error"]["code"] == "not-found"
    assert done.document["error"]["exit_code"] == 3
    assert cli("path", sibling).code == 3


def test_bytes_that_another_model_has_are_reused_and_stored_once(cli: Executable, model: Path, sibling: Path) -> None:
    cli("pull", model, sibling)
    used = cli("df", "--json").document

    assert used["snapshots"] == 2
    assert used["apart_bytes"] == 2 * (len(WEIGHTS) + 12)
    assert len(WEIGHTS) <= used["blobs_bytes"] < len(WEIGHTS) + 16 * 4096
    assert (used["content_bytes"], used["own_bytes"], used["shared_bytes"]) == (len(WEIGHTS) + 24, 24, len(WEIGHTS))
    cli("rm", sibling)
    used = cli("df", "--json").document
    assert (used["content_bytes"], used["own_bytes"], used["shared_bytes"]) == (len(WEIGHTS) + 12, len(WEIGHTS) + 12, 0)


def test_uris_come_from_stdin(cli: Executable, model: Path, sibling: Path) -> None:
    done = cli("pull", "--json", "-", stdin=f"{model}\n\n  {sibling}  \n")

    assert done.code == 0
    assert [snapshot["uri"] for snapshot in done.document["snapshots"]] == [f"file://{model}", f"file://{sibling}"]
    assert cli("pull", "-", stdin="\n").code == 2  # what was to write them has failed
    for command in ("pull", "prewarm"):
        assert cli(command, "-q", "-", stdin=f"# a remark\n{model}\n").out == cli("path", model).out


@pytest.mark.parametrize("command", ["pull -", "prewarm -", "prewarm -f -", "import -"])
def test_a_stdin_that_is_closed_is_told(cli: Executable, command: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f'"$0" {command} <&-', EXECUTABLE], env=cli.variables(), capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: stdin can't be read: it is closed")


def test_patterns_of_options_join_those_of_the_uri(cli: Executable, model: Path) -> None:
    (model / "notes & more.txt").write_text("x")
    (model / "old.bin").write_text("x")

    done = cli("pull", "--json", f"{model}#exclude=*.bin", "--exclude", "*.safetensors", "--include", "*.json", "--include", "notes & m*")

    (snapshot,) = done.document["snapshots"]
    assert snapshot["uri"] == f"file://{model}#include=*.json&include=notes%20%26%20m*&exclude=*.bin&exclude=*.safetensors"
    assert sorted(os.listdir(snapshot["path"])) == ["config.json", "notes & more.txt"]


def test_an_origin_that_is_away_is_told_and_its_last_version_given_on_request(cli: Executable) -> None:
    with FaultServer() as server:
        server.put("/model.bin", b"weights")
        url = f"{server.endpoint}/model.bin"
        path = cli("pull", "-q", url).out
    failed = cli("--json", "pull", url, MODELCACHE_RETRY_DEADLINE_S="0.001")
    assert failed.document["error"]["code"] == "origin-unreachable"
    assert "--offline" in failed.document["error"]["hint"]
    away = {"MODELCACHE_REFRESH_S": "0", "MODELCACHE_RETRY_DEADLINE_S": "0.001"}
    given = cli("pull", "-q", "--refresh", "auto", url, **away)
    assert (given.code, given.out) == (0, path)
    assert "warning: the origin of" in given.err
    [told] = cli("--json", "pull", "--refresh", "auto", url, **away).document["snapshots"]
    assert (told["stale"], told["hit"]) == (True, True)
    [known] = cli("--json", "pull", "--offline", url).document["snapshots"]
    assert not known["stale"]


def test_offline_asks_no_origin(cli: Executable, model: Path) -> None:
    before = cli("pull", "--offline", model)
    path = cli("pull", "-q", model).out
    model.rename(model.with_name("gone"))

    assert (before.code, cli("pull", model).code) == (3, 3)
    assert cli("pull", "-q", "--offline", model).out == path
    assert cli("pull", "-q", "--refresh", "auto", model).out == path


def test_a_changed_origin_gives_a_new_snapshot_beside_the_old_one(cli: Executable, model: Path) -> None:
    old = cli("pull", "-q", model).out
    (model / "config.json").write_bytes(b'{"model": 3, "longer": true}')
    new = cli("pull", "--json", model).document["snapshots"][0]

    assert new["path"] + "\n" != old
    assert new["reused_bytes"] == len(WEIGHTS)
    assert Path(old.strip()).is_dir()


def test_a_cap_that_is_too_small_refuses_with_the_numbers(cli: Executable, model: Path) -> None:
    done = cli("pull", "--json", "--max-bytes", "1MiB", model)

    assert done.code == 7
    assert done.document["snapshots"] == []
    error = done.document["error"]
    assert error["code"] == "no-space"
    assert error["needed_bytes"] > error["available_bytes"]
    assert cli("df", "--json").document["blobs_bytes"] == 0


def test_what_goes_to_make_room_is_told(cli: Executable, model: Path, tmp_path: Path) -> None:
    cap = f"--max-bytes={len(WEIGHTS) * 3 // 2}"
    other = tmp_path / "other.bin"
    other.write_bytes(bytes(len(WEIGHTS)))
    cli("pull", model)

    told = cli("pull", cap, other)
    assert f"evicted to make room: file://{model}, freed 9.0 MiB" in told.err.splitlines()
    events = [json.loads(line) for line in cli("pull", "--json", cap, model).err.splitlines()]
    (gone,) = [event for event in events if event["event"] == "evicted"]
    assert (gone["uri"], gone["freed_bytes"] >= len(WEIGHTS)) == (f"file://{other}", True)


def test_ls_and_path_and_show_tell_what_is_here(cli: Executable, model: Path, sibling: Path) -> None:
    cli("pull", "-q", model, sibling)
    lines = cli("ls").out.splitlines()
    digest = cli("show", "--json", model).document["digest"].removeprefix("sha256:")
    shown = cli("show", model).out

    assert lines[0].split() == ["DIGEST", "SIZE", "OWN", "SHARED", "FREED", "FILES", "USED", "HELD", "BY", "URI"]
    assert [line.split()[-1] for line in lines[1:]] == [f"file://{sibling}", f"file://{model}"]
    assert cli("path", digest[:8]).out == cli("path", f"sha256:{digest}").out == cli("path", f"file://{model}").out
    assert hashlib.sha256(WEIGHTS).hexdigest()[:16] in shown
    assert hashlib.sha256(WEIGHTS).hexdigest() not in shown
    assert hashlib.sha256(WEIGHTS).hexdigest() in cli("show", "-v", model).out
    assert "computed" in shown
    for name, said in ((digest[:7], "too short for a digest: 8 or more"), (digest.upper(), "small letters"), (f"{digest}0", "too long")):
        failed = cli("inspect" if name == digest[:7] else "path", name)
        assert (failed.code, said in failed.err, f"`{digest[:16]}` (file://{model})" in failed.err) == (3, True, len(name) <= 64)


def column(text: str, title: str) -> list[str]:
    """What a table shows under a title that is right-aligned."""
    head, *rows = text.splitlines()
    stop = head.index(title) + len(title)
    return [" ".join(row[:stop].split()[-2:]) for row in rows]


def test_ls_and_df_say_what_is_own_and_shared_and_what_removing_frees(cli: Executable, model: Path, sibling: Path) -> None:
    cli("pull", "-q", model, sibling)
    cli("pin", sibling)
    listed = cli("ls", "--json").document["snapshots"]
    table, room = cli("ls").out, cli("df").out
    usage = cli("df", "--json").document
    freed = cli("rm", "--json", model).document["freed_bytes"]

    for title in ("own", "shared", "freed"):
        assert column(table, title.upper()) == [format_bytes(each[f"{title}_bytes"]) for each in listed]
    assert freed == usage["evictable_bytes"] == next(each["freed_bytes"] for each in listed if not each["leases"])
    assert 0 < freed < usage["blobs_bytes"]
    evictable = next(line for line in room.splitlines() if "evictable" in line)
    assert f" {format_bytes(freed)}  freed when all that nobody holds goes" in evictable


def test_two_uris_of_one_model_share_it_and_rm_forgets_one(cli: Executable, model: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.mkdir()
    for path in model.iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
    cli("pull", "-q", model, twin)
    (listed,) = cli("ls", "--json").document["snapshots"]
    removed = cli("rm", "--json", twin).document

    assert sorted(listed["uris"]) == sorted([f"file://{model}", f"file://{twin}"])
    assert removed["freed_bytes"] == 0
    assert cli("path", model).code == 0
    assert cli("path", twin).code == 3


def test_a_pinned_model_is_not_removed(cli: Executable, model: Path) -> None:
    cli("pull", "-q", model)
    pinned = cli("pin", model, "--holder", "me")
    cli("pin", model, "--holder", "two\nlines")
    refused = cli("rm", model)
    nobody = cli("pin", model, "--holder", "")
    listed = cli("ls").out
    ended = cli("unpin", "--json", model).document["unpinned"]
    dry = cli("rm", "--dry-run", "--json", model).document
    kept = cli("path", model).code
    removed = cli("rm", "--json", model).document

    assert (pinned.code, nobody.code) == (0, 2)
    assert refused.code == 9
    assert "error: " in refused.err
    assert "me" in refused.err.splitlines()[0]
    assert "pin me" in listed
    assert "pin two\N{REPLACEMENT CHARACTER}lines" in listed
    assert (ended, kept) == (2, 0)
    assert dry["removed"] == removed["removed"]
    assert (dry["dry_run"], removed["dry_run"]) == (True, False)
    assert removed["freed_bytes"] >= len(WEIGHTS)
    assert cli("ls", "--json").document["snapshots"] == []


def test_gc_makes_the_room_that_is_asked_for(cli: Executable, model: Path) -> None:
    cli("pull", "-q", model)
    enough = cli("gc", "--json").document
    dry = cli("gc", "--json", "-n", "--need", "1TiB")
    never = cli("gc", "--need", "1TiB", MODELCACHE_MAX_BYTES="10MiB")
    cap = {"MODELCACHE_MAX_BYTES": "10MiB"}
    need = cli("gc", "--json", "--need", "5MiB", **cap).document

    assert enough["evicted"] == []
    assert (dry.code, dry.document["dry_run"], dry.document["error"]["needed_bytes"]) == (7, True, 1 << 40)
    assert (never.code, "error: 1.0 TiB are needed, " in never.err) == (7, True)
    assert [evicted["uris"] for evicted in need["evicted"]] == [[f"file://{model}"]]
    assert cli("path", model).code == 3


def damage(cli: Executable, model: Path) -> Path:
    """Flip a byte of the second chunk of the weights, as a dying disk would."""
    blob = Path(cli("path", model).out.strip()) / "model.safetensors"
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(5 * 1024 * 1024)
        byte = file.read(1)
        file.seek(5 * 1024 * 1024)
        file.write(bytes([byte[0] ^ 1]))
        file.flush()
        os.fsync(file.fileno())
    blob.chmod(0o444)
    return blob


def test_verify_finds_damage_and_a_pull_repairs_it(cli: Executable, model: Path) -> None:
    cli("pull", "-q", model)
    sound = cli("verify", "--json", model)
    damage(cli, model)
    found = cli("verify")
    later = [cli("verify"), cli("verify", model), cli("verify", "--budget", "1GiB")]
    gone = cli("path", model)
    repaired = cli("pull", "-q", model)

    assert (sound.code, sound.document["damages"], sound.document["snapshots"]) == (0, [], 1)
    assert sound.document["bytes_read"] == len(WEIGHTS) + 12
    assert found.code == 6
    assert "`modelcache verify --repair`" in found.err
    assert "damaged: " in found.out
    assert "chunks of 4 MiB: 1" in found.out
    for done in later:
        assert (done.code, f"out of service: file://{model}: sha256:" in done.out, "`modelcache rm`" in done.err) == (6, True, True)
    assert gone.code == 3
    assert (Path(repaired.out.strip()) / "model.safetensors").read_bytes() == WEIGHTS
    assert cli("verify").code == 0


@pytest.mark.parametrize("command", ["df", "verify", "gc", "path x", "show x", "pin x", "unpin x", "rm x"])
def test_commands_that_look_make_no_store(cli: Executable, inside: Callable[..., Done], command: str) -> None:
    done = inside(*command.split())

    assert done.code == 3
    assert "there is no store at" in done.err
    assert not cli.root.exists()


def test_ls_of_no_store_is_empty(cli: Executable) -> None:
    done = cli("ls", "--json")

    assert (done.code, done.document) == (0, {"root": str(cli.root), "snapshots": []})
    assert not cli.root.exists()


def test_common_options_stand_before_or_after_the_command(cli: Executable, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    before = cli("--root", other, "--json", "pull", model).document["snapshots"][0]["path"]
    after = cli("ls", "--json", "--root", other).document

    assert before.startswith(f"{other}/")
    assert after["root"] == str(other)
    assert len(after["snapshots"]) == 1
    assert not cli.root.exists()
