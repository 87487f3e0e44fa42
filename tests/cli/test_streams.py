"""Streams that are closed, full, narrow, colored or of another encoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from subprocess import PIPE

import pytest

from modelcache.cli.output import Output, Style
from tests.cli.executable import DEADLINE_S, EXECUTABLE, Executable

FORBIDDEN = (
    "torch", "transformers", "botocore", "boto3", "awscrt", "s3fs", "fsspec", "gcsfs", "google.auth", "huggingface_hub",
    "kubernetes", "numpy",
)  # fmt: skip
HEAVY = ("modelcache.cache", "modelcache.config", "modelcache.store", "modelcache.sources", "modelcache.fetch", "modelcache.transport")
LOADED = """
import sys
from modelcache.cli.main import main
code = main(sys.argv[1:])
print("\\n".join(sorted(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


def loaded(cli: Executable, *arguments: str) -> set[str]:
    """Modules that a run imported."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], env=cli.variables(), capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    return set(done.stderr.split())


def belongs(module: str, packages: tuple[str, ...]) -> bool:
    return module in packages or module.startswith(tuple(f"{package}." for package in packages))


@pytest.mark.parametrize("arguments", [["--help"], ["pull", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_neither_an_sdk_nor_the_floors_below(cli: Executable, arguments: list[str]) -> None:
    assert [module for module in loaded(cli, *arguments) if belongs(module, FORBIDDEN + HEAVY)] == []


def test_the_package_runs_as_the_command(cli: Executable) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "modelcache", "path"], env=cli.variables(), capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )

    same = cli("path")
    assert (done.returncode, done.stdout, done.stderr) == (same.code, same.out, same.err)


def test_looking_imports_no_sdk(cli: Executable, model: Path) -> None:
    cli("pull", "-q", model)

    for arguments in (["ls"], ["path", str(model)], ["df"]):
        assert [module for module in loaded(cli, *arguments) if belongs(module, FORBIDDEN)] == []


def test_the_watch_over_imports_sees(cli: Executable, model: Path) -> None:
    assert "modelcache.cache" in loaded(cli, "pull", "-q", str(model))


def test_a_reader_that_leaves_is_no_error(cli: Executable, model: Path) -> None:
    cli("pull", "-q", model)
    for arguments in (["ls"], ["--help"], ["show", "--json", str(model)], ["path", str(model)], ["doctor"]):
        read, write = os.pipe()
        os.close(read)
        with cli.start(*arguments, stdout=write, stderr=PIPE) as process:
            os.close(write)
            _, err = process.communicate(timeout=DEADLINE_S)

        assert (process.returncode, err) == (141, ""), arguments


def test_a_pull_goes_on_when_nobody_reads_its_progress(cli: Executable, model: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with cli.start("pull", model, stdout=PIPE, stderr=write) as process:
        os.close(write)
        out, _ = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 0
    assert Path(out.strip()).is_dir()


FULL, FULL_JSON = "error: stdout can't be written (No space left", '{"event": "error", "error": {"code": '


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("ls -q", 2, FULL),
        ("ls --json", 2, FULL_JSON + '"file-fault"'),
        ("--help", 2, FULL),
        ("export -q --all -", 2, FULL),
        ("path --json deadbeef", 3, FULL_JSON + '"not-cached"'),
    ],
)
def test_a_full_disk_behind_stdout_is_told(cli: Executable, model: Path, command: str, code: int, told: str) -> None:
    cli("pull", "-q", model)
    with open("/dev/full", "w", encoding="utf-8") as full, cli.start(*command.split(), stdout=full, stderr=PIPE) as process:
        _, err = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == code
    assert err.startswith(told)
    assert "Exception ignored" not in err
    assert "Traceback" not in err


def test_streams_may_be_closed(cli: Executable, model: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f'"{EXECUTABLE}" pull "{model}" >&- 2>&-'], env=cli.variables(), capture_output=True, timeout=DEADLINE_S, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert cli("path", model).code == 0


def test_paths_are_written_byte_for_byte_in_any_locale(cli: Executable, tmp_path: Path, model: Path) -> None:
    root = tmp_path / os.fsdecode(b"root-\xff-\xc3\xa9")
    for locale in ("C", "C.UTF-8", "POSIX"):
        done = subprocess.run(
            [EXECUTABLE, "pull", "-q", "--root", os.fsencode(root), model],
            env=cli.variables(LC_ALL=locale, PYTHONCOERCECLOCALE="0"),
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )

        assert (done.returncode, done.stderr) == (0, b"")
        assert Path(os.fsdecode(done.stdout.removesuffix(b"\n"))).is_dir()


def test_words_that_the_encoding_lacks_are_escaped(cli: Executable, tmp_path: Path) -> None:
    directory = tmp_path / "modèle"
    directory.mkdir()
    (directory / "poids.bin").write_bytes(b"x")
    ascii_only = {"PYTHONIOENCODING": "ascii"}

    assert cli("pull", "-q", directory, **ascii_only).code == 0
    assert "mod\\xe8le" in cli("ls", **ascii_only).out
    assert "modèle" in cli("ls", PYTHONIOENCODING="utf-8").out


def test_nothing_that_comes_from_an_origin_steers_a_terminal(cli: Executable, tmp_path: Path) -> None:
    directory = tmp_path / "a\u202eb[bold]\x9b31m"
    directory.mkdir()
    (directory / "x\u202ey.bin").write_bytes(b"x")
    cli("pull", "-q", directory)

    for done in (cli("ls"), cli("show", directory), cli("rm", directory)):
        assert done.code == 0
        assert "[bold]" in done.out or "FILE" in done.out
        assert not {"\u202e", "\x9b"} & set(done.out + done.err)


@pytest.mark.parametrize("fields", [{}, {"none": []}, {"lists": [1, {"in": [[], None]}], "text": "ü\n", "map": {"more": []}, "yes": True}])
def test_a_document_in_pieces_is_the_whole_one(fields: dict[str, object]) -> None:
    said = StringIO()
    Output(Style(as_json=True), out=said, err=StringIO()).document(fields)
    assert said.getvalue() == json.dumps(fields) + "\n"


def test_a_warning_without_a_next_step_has_no_empty_hint() -> None:
    said = StringIO()
    output = Output(Style(), out=StringIO(), err=said)

    output.warn("it is so", hint=None)
    output.warn("it is so", hint="change it")

    assert said.getvalue() == "warning: it is so\nwarning: it is so\nhint: change it\n"
