"""Completion: by bash's own function, and the words that bash breaks."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.cli.completion import rejoined
from tests.cli.executable import DEADLINE_S, EXECUTABLE, Executable

_BREAKS = re.compile(r"([:=@]+)")


def broken(words: list[str]) -> list[str]:
    """Words as bash hands them to a completion function."""
    return [part for word in words for part in (_BREAKS.split(word) if word else [""]) if part or not word]


def completed(cli: Executable, *words: str) -> list[str]:
    """What bash would offer for the last word, by the script that the executable prints."""
    split = broken(["modelcache", *words])
    script = f"""
        source <("{EXECUTABLE}" --show-completion bash)
        COMP_WORDS=({" ".join(map(shlex.quote, split))}) COMP_CWORD={len(split) - 1}
        PATH={shlex.quote(str(EXECUTABLE.parent))}:$PATH
        _modelcache_completion modelcache
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], env=cli.variables(), capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert done.stderr == ""
    return [line for line in done.stdout.split("\n") if line]


def test_names_that_are_here_are_completed(cli: Executable, model: Path, sibling: Path) -> None:
    cli("pull", "-q", model, sibling)
    digest = cli("path", model).out.strip().rpartition("/")[2]
    uris = [f"file://{model}", f"file://{sibling}"]

    assert completed(cli, "path", "") == uris
    assert completed(cli, "path", "fi") == uris
    assert completed(cli, "path", "file:") == [uri.removeprefix("file:") for uri in uris]
    assert completed(cli, "path", f"file://{sibling}"[:-2]) == [f"//{sibling}"]
    assert completed(cli, "rm", f"file://{model}", "fil") == uris
    assert completed(cli, "show", digest[:6]) == [digest[:16]]
    assert completed(cli, "show", digest[:2]) == []
    assert completed(cli, "path", "s3:") == []


def test_a_root_among_the_arguments_counts(cli: Executable, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    cli("--root", other, "pull", "-q", model)

    assert completed(cli, "path", "fi") == []
    assert completed(cli, "--root", str(other), "path", "fi") == [f"file://{model}"]
    assert completed(cli, "path", "--root", str(other), "fi") == [f"file://{model}"]


def test_commands_and_options_are_completed(cli: Executable) -> None:
    assert completed(cli, "un") == ["unpin"]
    assert completed(cli, "pull", "--off") == ["--offline"]
    assert completed(cli, "pull", "--refresh", "a") == ["always", "auto"]


def test_no_store_and_a_broken_one_complete_to_nothing(cli: Executable) -> None:
    assert completed(cli, "path", "") == []
    cli.root.mkdir()
    (cli.root / "precious").touch()
    assert completed(cli, "path", "") == []


WORD = st.text("ab:=@/", min_size=1, max_size=8).filter(lambda word: not set(word) <= set(":=@"))


@given(st.lists(WORD.filter(lambda word: word[0] not in ":=@" and word[-1] not in ":=@"), min_size=1, max_size=4))
def test_broken_words_are_whole_again(words: list[str]) -> None:
    split = broken(["modelcache", *words])
    joined, at, kept = rejoined(split, len(split) - 1)

    assert joined == ["modelcache", *words]
    assert at == len(words)
    assert words[-1].startswith(kept)
    assert words[-1].removeprefix(kept) == split[-1]


@pytest.mark.parametrize(
    ("typed", "whole", "kept"),
    [
        (["path", ""], ["path", ""], ""),
        (["path", "s3"], ["path", "s3"], ""),
        (["path", "s3", ":"], ["path", "s3:"], "s3:"),
        (["path", "s3", ":", "//b"], ["path", "s3://b"], "s3:"),
        (["rm", "s3", ":", "//b", "h"], ["rm", "s3://b", "h"], ""),
    ],
)
def test_what_bash_does_not_replace(typed: list[str], whole: list[str], kept: str) -> None:
    assert rejoined(["modelcache", *typed], len(typed)) == (["modelcache", *whole], len(whole), kept)
