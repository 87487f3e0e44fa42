"""`modelcache config show`, and settings that come from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cli.executable import Done, Executable


def shown(done: Done) -> dict[str, dict[str, Any]]:
    return {one["key"]: one for one in done.document["settings"]}


def test_every_setting_says_where_its_value_came_from(cli: Executable, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[store]\nmax_bytes = "10GiB"\n[proxy]\nhttps = "http://me:hunter2@proxy:3128"\n')
    file.chmod(0o600)

    found = shown(cli("config", "show", "--json", "--config", file, "--root", "/there", AWS_REGION="eu-west-1"))
    said = cli("--config", file, "config", "show").out

    assert {key: (found[key]["value"], found[key]["place"], found[key]["name"], found[key]["line"]) for key in WANTED} == {
        "store.root": ("/there", "flag", "--root", None),
        "store.max_bytes": (10 << 30, "file", str(file), 2),
        "s3.region": ("eu-west-1", "environment", "AWS_REGION", None),
        "fetch.requests": (16, "default", None, None),
        "proxy.https": ("http://proxy:3128", "file", str(file), 4),
    }
    assert f"file: {file}" in said
    assert f"{file}:2" in said
    assert "hunter2" not in str(found) + said


WANTED = ("store.root", "store.max_bytes", "s3.region", "fetch.requests", "proxy.https")


def test_doctor_tells_which_file_counts_who_may_read_it_and_what_is_misspelt(cli: Executable, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[store]\nmax_bytes = "10GiB"\n[http.headers.host]\nX-Key = "hunter2"\n')
    file.chmod(0o640)

    done = cli("doctor", "--json", MODELCACHE_CONFIG=str(file), MODELCACHE_MAX_BYTE="1", MODELCACHE_FSSPEC_ABFS='{"a": 1}')
    found = [one for one in done.document["findings"] if one["check"] == "settings"]

    assert [(one["level"], one["message"]) for one in found] == [
        ("ok", f"2 from the configuration file: {file}"),
        ("warn", f"`http.headers` holds a secret, and the group of the file may read it: {file}"),
        ("warn", "no setting reads the variable MODELCACHE_MAX_BYTE"),
    ]
    assert found[2]["hint"] == "did you mean MODELCACHE_MAX_BYTES?"
    file.chmod(0o600)
    said = cli("doctor", MODELCACHE_CONFIG=str(file)).out
    assert "may read" not in said
    assert "hunter2" not in said


def test_a_file_is_what_commands_work_with(cli: Executable, tmp_path: Path, model: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[store]\nroot = '{tmp_path / 'elsewhere'}'\n")

    pulled = cli("pull", model, MODELCACHE_CONFIG=str(file), MODELCACHE_ROOT="")

    assert pulled.out.startswith(str(tmp_path / "elsewhere"))
    file.write_text("[store]\nrot = '/x'\n")
    failed = cli("ls", MODELCACHE_CONFIG=str(file))
    assert failed.code == 2
    assert f"{file}:2: store.rot" in failed.err
    assert "`store.root`" in failed.err
