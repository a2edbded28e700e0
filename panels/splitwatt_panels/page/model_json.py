"""The panels as JSON for the page: what the model says, with words for units and looks left as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from splitwatt_panels.model import Panel, PanelSet
from splitwatt_panels.promql import RANGE


def page_model(sets: Sequence[PanelSet], *, scrape_s: float) -> str:
    """`scrape_s`: the scrape interval, four of which a rate spans at least."""
    return json.dumps({"rateInterval": RANGE, "scrapeSeconds": scrape_s, "sets": [_set(panels) for panels in sets]})


def _set(panels: PanelSet) -> Mapping[str, Any]:
    return {
        "key": panels.key,
        "title": panels.title,
        "description": panels.description,
        "variables": [{"name": v.name, "title": v.title, "metric": v.metric, "label": v.label} for v in panels.variables],
        "rows": [{"title": row.title, "panels": [_panel(panel) for panel in row.panels]} for row in panels.rows],
    }


def _panel(panel: Panel) -> Mapping[str, Any]:
    return {
        "title": panel.title,
        "unit": panel.unit.value,
        "description": panel.description,
        "why": panel.why,
        "look": panel.look.value,
        "base": panel.base.value,
        "thresholds": [{"value": step.value, "level": step.level.value} for step in panel.thresholds],
        "states": [list(state) for state in panel.states],
        "queries": [{"expr": query.expr, "legend": query.legend} for query in panel.queries],
    }
