"""The thread of `serve` that lets repository and home keep the catalog's key."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.catalog_keys import keep_sharing
from appliance.settings import load


def test_a_catalog_that_is_away_from_the_start_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = f"postgresql+psycopg:///strongroom?host={tmp_path / 'nowhere'}"
    stop = threading.Event()
    ended: list[bool] = []

    def sharing() -> None:
        keep_sharing(appliance, stop)
        ended.append(True)

    with Appliance(load({"STRONGROOM_HOME": str(tmp_path / "home"), "STRONGROOM_CATALOG_URL": nowhere})) as appliance:
        thread = threading.Thread(target=sharing)
        thread.start()
        while "the catalog's key" not in caplog.text:
            assert thread.is_alive()
            stop.wait(0.02)
        stop.set()
        thread.join()
    assert ended == [True]
    assert "cannot be reached" in caplog.text
