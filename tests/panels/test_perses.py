"""PersesDashboards say what the panels say, in words that Perses' plugins have."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from splitwatt_panels.model import PanelSet
from splitwatt_panels.perses import perses_json
from splitwatt_panels.sets import SETS
from support.some import some

EACH = pytest.mark.parametrize("panels", SETS, ids=[s.key for s in SETS])
PLUGINS = {
    "TimeSeriesChart": {"legend", "tooltip", "yAxis", "thresholds", "visual", "querySettings"},
    "StatChart": {
        "calculation", "metricLabel", "format", "thresholds", "sparkline", "valueFontSize", "colorMode", "legendMode", "mappings"
    },
    "StatusHistoryChart": {"legend", "mappings", "sorting"},
}  # fmt: skip
"""What their closed CUE definitions have (perses/plugins, August 2026): Perses refuses a panel that says more."""
UNITS = {"decimal", "seconds", "percent-decimal", "counts/sec", "bytes", "bytes/sec"}


def document(panels: PanelSet) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(perses_json(panels))
    return found


@EACH
def test_every_panel_asks_what_the_model_asks(panels: PanelSet) -> None:
    found = document(panels)
    drawn = list(found["panels"].values())
    assert [panel["spec"]["display"]["name"] for panel in drawn] and len(drawn) == len(panels.panels)
    asked = {q["spec"]["plugin"]["spec"]["query"] for panel in some(drawn) for q in panel["spec"]["queries"]}
    assert asked == {query.expr for panel in panels.panels for query in panel.queries}


@EACH
def test_every_variable_that_is_asked_for_is_there(panels: PanelSet) -> None:
    found = document(panels)
    there = {variable["spec"]["name"] for variable in found["variables"]} | {"__rate_interval"}
    used = set(re.findall(r"\$(\w+)", "".join(query.expr for panel in panels.panels for query in panel.queries)))
    assert used and used <= there
    assert all(v["spec"]["customAllValue"] == ".*" and v["spec"]["defaultValue"] == "$__all" for v in found["variables"])


@EACH
def test_plugins_are_told_what_they_know(panels: PanelSet) -> None:
    for panel in some(document(panels)["panels"].values()):
        plugin = panel["spec"]["plugin"]
        assert set(plugin["spec"]) <= PLUGINS[plugin["kind"]]
        form = plugin["spec"].get("format") or plugin["spec"].get("yAxis", {}).get("format")
        assert form is None or form["unit"] in UNITS
        for step in plugin["spec"].get("thresholds", {}).get("steps", ()):
            assert re.fullmatch("#[0-9a-f]{6}", step["color"])


@EACH
def test_every_panel_has_one_place_and_none_lies_on_another(panels: PanelSet) -> None:
    found = document(panels)
    placed = []
    for grid in some(found["layouts"]):
        taken: set[tuple[int, int]] = set()
        for item in grid["spec"]["items"]:
            placed.append(item["content"]["$ref"].removeprefix("#/spec/panels/"))
            cells = {
                (x, y) for x in range(item["x"], item["x"] + item["width"]) for y in range(item["y"], item["y"] + item["height"])
            }
            assert item["x"] + item["width"] <= 24 and not cells & taken
            taken |= cells
    assert sorted(placed) == sorted(found["panels"])
