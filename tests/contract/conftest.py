"""A catalog in every engine, for whatever contract asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.catalog import Catalog
from tests.contract.catalogs import OTHER, Place
from tests.lab.postgres_server import running


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    where = str(tmp_path / "catalog.sqlite") if request.param == "sqlite" else running().fresh_catalog()
    return Place(where, tmp_path / "lock")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where nobody has made a catalog yet."""
    where = str(tmp_path / "catalog.sqlite") if request.param == "sqlite" else running().fresh()
    return Place(where, tmp_path / "lock")


@pytest.fixture
def catalog(place: Place) -> Iterator[Catalog]:
    with place.open() as catalog:
        yield catalog


@pytest.fixture
def other(place: Place, catalog: Catalog) -> Iterator[Catalog]:
    """The same catalog, as another appliance has it."""
    with place.open(OTHER) as other:
        yield other
