"""Every command and option that a document shows exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from modelcache.cli.app import build
from tests.docs.documents import ROOT, documents, fenced, inline, name_of

COMMAND = re.compile(r"^(?:\$ )?(?:\w+=\S+ )*modelcache(?= |$)(.*)$")
PLACEHOLDER = "…"


def shown(text: str) -> list[str]:
    """What follows `modelcache` in every command of a document: lines of code blocks, and code between backticks."""
    lines = [line.strip() for block in fenced(text) for line in block.splitlines()]
    candidates = [*lines, *inline(text)]
    found = []
    for candidate in candidates:
        for part in re.split(r" && |; |\$\(|\)| \| ", candidate):
            match = COMMAND.match(part.strip())
            if match:
                found.append(match[1].split(" #")[0].strip())
    return found


def unknown(words: str) -> Iterator[str]:
    """The words that name no command or option."""
    known: Any = typer.main.get_command(build())
    options = {name for parameter in known.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help", "-h"}
    command = None
    takes_value = valued(known)
    skip = False
    for word in shlex.split(words.replace(PLACEHOLDER, "X")):
        name = word.split("=")[0]
        if skip:
            skip = False
        elif word.startswith("-") and word != "-":
            if name not in options:
                yield word
            skip = name in takes_value and "=" not in word
        elif command is None and not word.isupper():
            command = known.commands.get(word)
            if command is None:
                yield word
                return
            options |= {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            takes_value |= valued(command)


def valued(command: Any) -> set[str]:
    return {
        name for parameter in command.params if not getattr(parameter, "is_flag", True) for name in parameter.opts if name.startswith("-")
    }


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_every_command_that_is_shown_exists_with_its_options(document: Path) -> None:
    text = document.read_text(encoding="utf-8")

    assert [f"{words}: {bad}" for words in shown(text) for bad in unknown(words)] == []


def test_what_does_not_exist_is_seen() -> None:
    text = "`modelcache pul s3://x` and `modelcache --root /r ls --jsn`\n```sh\nA=1 modelcache pull --offlin x && modelcache df\n```\n"

    assert [bad for words in shown(text) for bad in unknown(words)] == ["--offlin", "pul", "--jsn"]


def test_every_target_of_make_that_is_shown_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    texts = [path.read_text(encoding="utf-8") for path in documents()]
    pieces = [piece for text in texts for piece in [*inline(text), *(line for block in fenced(text) for line in block.splitlines())]]
    named = {match[1] for piece in pieces if (match := re.match(r"make (?:[A-Z_]+=\S+ )*([a-z-]+)\b", piece.strip()))}

    assert {"demo", "test", "lint", "bench"} <= targets
    assert named - targets == set()
