"""What documents say in tables and pictures is what the code says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from modelcache.errors import ErrorCode
from modelcache.units import parse_bytes
from tests.docs.documents import ROOT, between, fenced, inline, rows

OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")


def test_the_size_examples_of_the_documents_are_read() -> None:
    sizes = [text for text in inline(OPERATIONS) if re.fullmatch(r"[\d.]+ ?[KMGT]i?B", text)]

    assert sizes
    assert all(parse_bytes(text) > 0 for text in sizes)


def test_every_error_code_is_documented_and_every_documented_one_exists() -> None:
    text = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    codes = [row[0].strip("`") for row in rows(between(text, "errors"))]

    assert sorted(codes) == sorted(ErrorCode)


def test_error_codes_that_other_documents_name_exist() -> None:
    known = {str(code) for code in ErrorCode}
    text = (ROOT / "docs/semantics.md").read_text(encoding="utf-8")
    named = {cell for row in rows(text) for cell in re.findall(r"`([a-z]+-[a-z-]+)`", row[1])}

    assert named
    assert named <= known


def test_the_floors_in_the_document_are_those_that_the_linter_checks() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (picture,) = fenced(between(text, "floors"))
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]

    assert picture.splitlines() == layers


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md"])
def test_files_that_documents_name_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = [path for path in inline(text) if re.fullmatch(r"(modelcache|tests|docs|bench|demo|tools)/[\w./-]+", path)]

    assert [path for path in named if not (ROOT / path).exists() and "model-delivery" not in path] == []


def promises() -> list[list[str]]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return list(rows(between(readme, "promises")))


def test_each_promise_names_tests_that_exist() -> None:
    table = promises()
    named = [(row[0], re.findall(r"`((?:tests|modelcache/testing)/[\w/]+\.py)(?:::(\w+))?`", row[-1])) for row in table]

    assert len(table) >= 8
    assert [promise for promise, found in named if not found] == []
    assert [test for _, found in named for test in found if not exists(*test)] == []


def exists(file: str, function: str) -> bool:
    path = Path(ROOT / file)
    return path.is_file() and (not function or re.search(rf"def {function}\(", path.read_text(encoding="utf-8")) is not None)
