"""The table of `docs/errors.md`, made from the code. `python -m tests.cli.errors_table` writes it into the document."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from modelcache.cli.exit_codes import GROUPS, group_of
from modelcache.errors import ModelCacheError
from tests.docs.documents import ROOT, between

DOCUMENT: Path = ROOT / "docs/errors.md"
MARK = "errors"
HEAD = "| code | error | group | exit | retry | meaning | next step |\n|---|---|---|---|---|---|---|\n"


def concrete(kind: type[ModelCacheError] = ModelCacheError) -> Iterator[type[ModelCacheError]]:
    """Every class of the package's tree that carries a code, in the order of the source."""
    if "code" in vars(kind) and kind.__module__.startswith("modelcache."):
        yield kind
    for sub in kind.__subclasses__():
        yield from concrete(sub)


def table() -> str:
    return HEAD + "".join(_row(kind) for kind in concrete())


def _row(kind: type[ModelCacheError]) -> str:
    group = group_of(kind)
    assert group is not None, kind
    cells = [
        f"`{kind.code}`",
        kind.__name__,
        group.__name__,
        str(int(GROUPS[group])),
        "yes" if kind.retryable else "no",
        _meaning(kind),
        kind.default_hint or "told by the error",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _meaning(kind: type[ModelCacheError]) -> str:
    paragraph = (inspect.getdoc(kind) or "").split("\n\n")[0]
    return " ".join(paragraph.split())


def write() -> None:
    begin, end = f"<!-- {MARK} -->\n", f"<!-- /{MARK} -->"
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(text.replace(begin + documented() + end, begin + table() + end), encoding="utf-8")


def documented() -> str:
    return between(DOCUMENT.read_text(encoding="utf-8"), MARK)


if __name__ == "__main__":
    write()
