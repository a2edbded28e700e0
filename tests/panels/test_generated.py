"""The generated files are current, and the dashboards are what Grafana takes and people can find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.models.dashboard import Dashboard
from splitwatt_panels import generate
from splitwatt_panels.grafana import SCHEMA_VERSION, TAG, dashboard_json
from splitwatt_panels.model import PanelSet
from splitwatt_panels.sets import SETS
from support.some import some

EACH = pytest.mark.parametrize("panels", SETS, ids=[s.key for s in SETS])
KEYS = {"budgets", "nodes", "serving", "split", "operations"}
"""People's links hold these. A new set is added here; one that goes leaves dead links."""


def document(panels: PanelSet) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dashboard_json(panels))
    return found


def test_generated_files_are_current() -> None:
    assert generate.stale(generate.ROOT) == [], "run `make generate`"


def test_what_is_stale_is_told_and_mended(tmp_path: Path) -> None:
    assert generate.main(["--root", str(tmp_path)]) == 0
    assert generate.stale(tmp_path) == []
    (tmp_path / generate.RULES).write_text("edited")
    (tmp_path / generate.DASHBOARDS / "gone.json").write_text("{}")
    assert generate.main(["--root", str(tmp_path), "--check"]) == 1
    assert sorted(generate.stale(tmp_path)) == [f"{generate.DASHBOARDS}/gone.json", generate.RULES]
    assert generate.main(["--root", str(tmp_path)]) == 0
    assert generate.main(["--root", str(tmp_path), "--check"]) == 0


def test_addresses_stay() -> None:
    assert {s.key for s in SETS} == KEYS
    assert all(document(s)["uid"] == f"splitwatt-{s.key}" for s in SETS)


@EACH
def test_a_dashboard_is_read_only_tagged_and_linked(panels: PanelSet) -> None:
    found = document(panels)
    assert found["editable"] is False and found["tags"] == [TAG] and found["schemaVersion"] == SCHEMA_VERSION
    (link,) = found["links"]
    assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == ("dashboards", [TAG], True, True)
    assert "id" not in found, "Grafana gives it"


@EACH
def test_every_query_goes_to_the_chosen_data_source(panels: PanelSet) -> None:
    found = document(panels)
    names = [variable["name"] for variable in found["templating"]["list"]]
    assert names == ["datasource", *(variable.name for variable in panels.variables)]
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    asking = [part for part in found["templating"]["list"] if part["type"] == "query"]
    drawn = [panel for panel in found["panels"] if panel["type"] != "row"]
    assert len(drawn) == len(panels.panels)
    for part in [*some(asking), *some(drawn), *(target for panel in drawn for target in panel["targets"])]:
        assert part["datasource"] == chosen
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in drawn)


@EACH
def test_no_panel_lies_on_another(panels: PanelSet) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in some(document(panels)["panels"]):
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, f"{panel['title']} lies on {taken[cell]}"
            taken[cell] = panel["title"]
    assert len({panel["id"] for panel in document(panels)["panels"]}) == len(document(panels)["panels"])


@EACH
def test_grafanas_own_model_reads_it_back(panels: PanelSet) -> None:
    found = document(panels)
    read = Dashboard.from_json(found)
    assert read.uid == panels.uid and read.title == f"Splitwatt / {panels.title}"
    assert read.panels is not None and len(read.panels) == len(found["panels"])
