"""What broken meters show, changed while the twin runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from splitwatt_twin.meter_faults import MeterFaults, MeterSeries

READINGS = {"a1": 1000.0, "a2": 2000.0}
NOW_S = 500.0


def shown(tmp_path: Path, fault: Mapping[str, Any]) -> list[MeterSeries]:
    file = tmp_path / "faults.json"
    file.write_text(json.dumps({"a1": fault}))
    series = MeterFaults(file).shown(READINGS, NOW_S)
    assert series[-1] == MeterSeries({"rack": "a2"}, 2000.0), "the other meter is sound"
    return series[:-1]


def test_without_a_file_all_meters_are_sound(tmp_path: Path) -> None:
    sound = [MeterSeries({"rack": "a1"}, 1000.0), MeterSeries({"rack": "a2"}, 2000.0)]
    assert MeterFaults(None).shown(READINGS, NOW_S) == sound
    assert MeterFaults(tmp_path / "none.json").shown(READINGS, NOW_S) == sound


@pytest.mark.parametrize(
    ("fault", "power_w"),
    [
        ({"show": 4294967295}, 4294967295.0),
        ({"show": -500}, -500.0),
        ({"rack": "a2"}, 2000.0),
        ({"scale": 0.1}, 100.0),
        ({}, 1000.0),
    ],
)
def test_the_value_shown(tmp_path: Path, fault: Mapping[str, Any], power_w: float) -> None:
    assert shown(tmp_path, fault) == [MeterSeries({"rack": "a1"}, power_w)]


def test_what_is_no_number_is_shown_as_such(tmp_path: Path) -> None:
    assert math.isnan(shown(tmp_path, {"show": "NaN"})[0].power_w)
    assert math.isinf(shown(tmp_path, {"show": "+Inf"})[0].power_w)


def test_gone_twice_and_late(tmp_path: Path) -> None:
    assert shown(tmp_path, {"gone": True}) == []
    assert [series.labels for series in shown(tmp_path, {"twice": True})] == [{"rack": "a1"}, {"rack": "a1", "outlet": "2"}]
    assert shown(tmp_path, {"late_s": 20})[0].at_s == NOW_S - 20


def test_a_stuck_meter_holds_its_first_reading_until_it_is_mended(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    file.write_text('{"a1": {"hold": true}}')
    faults = MeterFaults(file)
    assert faults.shown({"a1": 1000.0}, NOW_S)[0].power_w == 1000.0
    assert faults.shown({"a1": 1700.0}, NOW_S)[0].power_w == 1000.0
    file.write_text("{}")
    assert faults.shown({"a1": 1800.0}, NOW_S)[0].power_w == 1800.0
    file.write_text('{"a1": {"hold": true}}')
    assert faults.shown({"a1": 1900.0}, NOW_S)[0].power_w == 1900.0


@pytest.mark.parametrize("text", ["{", '{"a1": {"shwo": 1}}', '{"a1": 5}', "[]"])
def test_a_file_that_cannot_be_read_is_said_once_and_breaks_nothing(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "faults.json"
    file.write_text(text)
    faults = MeterFaults(file)
    for _ in range(3):
        assert len(faults.shown(READINGS, NOW_S)) == 2
    assert len(caplog.records) == 1
