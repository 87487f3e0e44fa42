"""What tests of exports and imports start from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from modelcache.store.store import LocalStore
from tests.unit.carry.stores import carried_out, store_at, two_models


@pytest.fixture
def origin(tmp_path: Path) -> LocalStore:
    return two_models(tmp_path / "origin")


@pytest.fixture(scope="session")
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    carried_out(two_models(directory / "origin"), directory / "models.tar")
    return directory / "models.tar"


@pytest.fixture
def file(exported_once: Path, tmp_path: Path) -> Path:
    """An export of two models."""
    return Path(shutil.copy(exported_once, tmp_path))


@pytest.fixture
def target(tmp_path: Path) -> LocalStore:
    return store_at(tmp_path / "target")
