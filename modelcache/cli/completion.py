"""Completion of names that are here, and of words that hold a colon in bash."""

from __future__ import annotations

import sys
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import typer

from modelcache.cli.options import CommonOptions
from modelcache.cli.session import Session
from modelcache.errors import ModelCacheError
from modelcache.units import format_bytes

COMPLETE_VARIABLE = "_MODELCACHE_COMPLETE"
WORD_BREAKS = frozenset(":=@")
"""Characters of URIs at which bash starts a new word (COMP_WORDBREAKS, Bash Reference Manual §8.7)."""
SHOWN_DIGITS = 16
LEAST_DIGITS = 4
"""A word this long that is a beginning of digests is completed to them; shorter ones are more likely beginnings of URIs."""


def complete_name(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """URIs and digests of the store that begin with what was typed, each with its size."""
    options = CommonOptions()
    link: Any = context
    while link is not None:
        options = options.over(CommonOptions(root=_path(link.params.get("root")), config=_path(link.params.get("config"))))
        link = link.parent
    session = Session.of(options, context.find_root().obj.environ)
    try:
        if not session.has_store():
            return []
        with session.open_store() as cache:
            infos = cache.list()
    except ModelCacheError:
        return []  # the shell asks in the middle of a line; the command itself will tell
    found = set()
    for info in infos:
        names = [ref.key.uri for ref in info.refs]
        if len(incomplete) >= LEAST_DIGITS:
            names.append(info.digest.hex[:SHOWN_DIGITS])
        found |= {(name, format_bytes(info.size_bytes)) for name in names if name.startswith(incomplete) and name.isprintable()}
    return sorted(found)


def _path(given: Any) -> Path | None:
    return None if given is None else Path(given)  # text or a path, by the version of typer


def complete_in_bash(environ: MutableMapping[str, str], run: Callable[[], object]) -> None:
    """Answer bash, which breaks `s3://m` into `s3`, `:` and `//m` and replaces the last of them alone.

    Args:
        environ: holds what bash asks; changed to the words as they were typed.
        run: answers on stdout, one completion a line, and leaves by SystemExit.
    """
    words, at, kept = rejoined(environ["COMP_WORDS"].split("\n"), int(environ["COMP_CWORD"]))
    environ["COMP_WORDS"], environ["COMP_CWORD"] = "\n".join(words), str(at)
    answer, code = StringIO(), 0
    with redirect_stdout(answer):
        try:
            run()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 0
    for line in answer.getvalue().splitlines():
        sys.stdout.write(line.removeprefix(kept) + "\n")
    sys.stdout.flush()
    sys.exit(code)


def rejoined(words: Sequence[str], at: int) -> tuple[list[str], int, str]:
    """Words that bash broke at `WORD_BREAKS`, whole again.

    Returns:
        The words, the place of the word at `at` among them, and the beginning of it that bash doesn't replace.
    """
    joined: list[str] = []
    place, kept = at, ""
    glue = False
    for number, word in enumerate(words):
        is_break = word != "" and set(word) <= WORD_BREAKS
        if joined and number > 1 and (glue or is_break):
            before, joined[-1] = joined[-1], joined[-1] + word
        else:
            before = ""
            joined.append(word)
        glue = is_break
        if number == at:
            place, kept = len(joined) - 1, joined[-1] if is_break else before
    return joined, min(place, at), kept
