"""What the documents say about settings is what the code does."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from modelcache.config import Config, Settings
from modelcache.config.resolving import Place
from modelcache.config.table import SETTINGS
from tests.docs.documents import ROOT, between, rows
from tools.settings import EXAMPLE, OPERATIONS, wanted

HOME = {"HOME": "/nowhere"}


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
    """Every variable that `Config.load` asks for; some only when another one is set, or is not."""
    asked: set[str] = set()
    for values in (HOME, HOME | {"S3_ENDPOINT": "localhost"}, HOME | {"XDG_CONFIG_HOME": "/nowhere"}):
        environ = Recording(values)
        Config.load(environ)
        asked |= environ.asked
    return asked


def documented() -> list[str]:
    text = OPERATIONS.read_text(encoding="utf-8")
    cells = [row[1] for row in rows(between(text, "settings"))] + [row[0] for row in rows(between(text, "environment"))]
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def test_every_environment_variable_is_documented_and_every_documented_one_exists() -> None:
    names = documented()

    assert len(names) == len(set(names))
    assert set(names) == variables_read()


def test_the_documents_are_what_the_table_of_settings_makes_of_them() -> None:
    stale = [str(path.relative_to(ROOT)) for path, text in wanted().items() if path.read_text(encoding="utf-8") != text]

    assert stale == [], "run `python -m tools.settings`"


def test_the_example_file_says_the_defaults() -> None:
    assert Config.load(HOME, file=EXAMPLE) == Config.load(HOME)


def test_the_example_file_names_every_key_with_a_value_that_is_read(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=\S)", "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)

    settings = Settings.read(HOME, file=file)

    assert tomllib.loads(text)
    assert [one.setting.key for one in settings.values if one.place is not Place.FILE] == []
    assert len(settings.values) == len(SETTINGS)
    assert settings.config().root == Path("/path")
