"""Every link inside the repository leads somewhere."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.documents import anchors, documents, links, name_of


def broken(document: Path) -> list[str]:
    text = document.read_text(encoding="utf-8")
    missing = []
    for link in links(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (document.parent / path).resolve() if path else document
        known = anchors(target.read_text(encoding="utf-8")) if anchor and target.suffix == ".md" and target.exists() else {anchor}
        if not target.exists() or anchor not in known:
            missing.append(link)
    return missing


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_every_relative_link_and_anchor_resolves(document: Path) -> None:
    assert broken(document) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("# Here\n[x](b.md) [y](#here) [z](#there) [w](a.md#here) [v](https://example.com/b.md) `[u](c.md)`\n")

    assert broken(document) == ["b.md", "#there"]
