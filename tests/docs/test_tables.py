"""What documents say in tables and pictures is what the code says."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from modelcache.config import Config
from modelcache.errors import ErrorCode
from modelcache.units import parse_bytes
from tests.docs.documents import ROOT, between, fenced, inline, rows

OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")


class Recording(Mapping[str, str]):
    """An environment that remembers which variables it was asked for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values_ = dict(values)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self.values_[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


def variables_read() -> set[str]:
    """Every variable that `Config.load` asks for; some only when another one is set."""
    asked: set[str] = set()
    for values in ({"HOME": "/nowhere"}, {"HOME": "/nowhere", "S3_ENDPOINT": "localhost"}):
        environ = Recording(values)
        Config.load(environ)
        asked |= environ.asked
    return asked


def documented() -> list[tuple[list[str], str]]:
    """The names and the default of each row."""
    return [(re.findall(r"`(\w+)`", row[0]), row[1]) for row in rows(between(OPERATIONS, "environment"))]


def test_every_environment_variable_is_documented_and_every_documented_one_exists() -> None:
    names = [name for row, _ in documented() for name in row]
    in_either_case = {name.lower() for name in names if name.endswith("_PROXY")}

    assert len(names) == len(set(names))
    assert {*names, *in_either_case} == variables_read()


def test_documented_defaults_are_the_defaults() -> None:
    config = Config.load({"HOME": "/nowhere"})
    actual: dict[str, float | str] = {
        "MODELCACHE_HIGH_WATERMARK": config.limits.high_watermark,
        "MODELCACHE_LOW_WATERMARK": config.limits.low_watermark,
        "MODELCACHE_REFRESH_S": config.refresh_s,
        "MODELCACHE_REQUESTS": config.engine.concurrency.most,
        "MODELCACHE_CONNECT_TIMEOUT_S": config.timeouts.connect_s,
        "MODELCACHE_STALL_TIMEOUT_S": config.timeouts.stall_s,
        "MODELCACHE_RETRY_DEADLINE_S": config.retry.deadline_s,
    }
    shown = {row[0]: default.strip("`") for row, default in documented() if row and row[0] in actual}

    assert {name: float(default) for name, default in shown.items()} == actual


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
