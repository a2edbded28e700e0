"""Dashboards as Perses has them: what stands in `spec.config` of a PersesDashboard, in the words of Perses' own plugins.

Perses has no unit for watts, joules and hertz: the axis is labelled with it. Its data source is the project's default one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from splitwatt_panels.grafana import HEIGHTS, WIDTH, lines_of
from splitwatt_panels.model import Drawing, Panel, PanelSet, Tone, Unit, Variable

_FORMATS: Final[Mapping[Unit, tuple[Mapping[str, Any], str]]] = {
    Unit.WATTS: ({"unit": "decimal", "shortValues": True}, "W"),
    Unit.SECONDS: ({"unit": "seconds"}, ""),
    Unit.JOULES: ({"unit": "decimal", "shortValues": True}, "J"),
    Unit.HERTZ: ({"unit": "decimal", "shortValues": True}, "Hz"),
    Unit.SHARE: ({"unit": "percent-decimal"}, ""),
    Unit.COUNT: ({"unit": "decimal", "shortValues": True}, ""),
    Unit.PER_SECOND: ({"unit": "counts/sec"}, ""),
    Unit.BYTES: ({"unit": "bytes", "shortValues": True}, ""),
    Unit.BYTES_PER_SECOND: ({"unit": "bytes/sec", "shortValues": True}, ""),
}
"""Perses' format, and the label of the axis."""
_COLOURS: Final[Mapping[Tone, str]] = {Tone.GOOD: "#3f9c35", Tone.WARNING: "#ec7a08", Tone.BAD: "#c9190b"}


def perses_json(panels: PanelSet) -> str:
    """Equal sets give equal bytes."""
    return json.dumps(_config(panels), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _config(panels: PanelSet) -> dict[str, Any]:
    names = {id(panel): f"panel{number}" for number, panel in enumerate(panels.panels, 1)}
    layouts: list[dict[str, Any]] = []
    for row in panels.rows:
        items: list[dict[str, Any]] = []
        y = 0
        for group in lines_of(row.panels):
            height, width = max(HEIGHTS[panel.look] for panel in group), WIDTH // len(group)
            for at, panel in enumerate(group):
                place = {"x": at * width, "y": y, "width": width, "height": height}
                items.append({**place, "content": {"$ref": f"#/spec/panels/{names[id(panel)]}"}})
            y += height
        layouts.append({"kind": "Grid", "spec": {"display": {"title": row.title, "collapse": {"open": True}}, "items": items}})
    return {
        "display": {"name": f"Splitwatt / {panels.title}", "description": panels.description},
        "duration": "1h",
        "refreshInterval": "10s",
        "variables": [_variable(variable) for variable in panels.variables],
        "panels": {names[id(panel)]: _panel(panel) for panel in panels.panels},
        "layouts": layouts,
    }


def _variable(variable: Variable) -> dict[str, Any]:
    values = {"labelName": variable.label, "matchers": [variable.metric]}
    return {
        "kind": "ListVariable",
        "spec": {
            "name": variable.name,
            "display": {"name": variable.title},
            "allowMultiple": True,
            "allowAllValue": True,
            "customAllValue": ".*",
            "defaultValue": "$__all",
            "sort": "alphabetical-asc",
            "plugin": {"kind": "PrometheusLabelValuesVariable", "spec": values},
        },
    }


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "kind": "Panel",
        "spec": {
            "display": {"name": panel.title, "description": f"{panel.description}\n\n{panel.why}"},
            "plugin": _plugin(panel),
            "queries": [
                {
                    "kind": "TimeSeriesQuery",
                    "spec": {
                        "plugin": {
                            "kind": "PrometheusTimeSeriesQuery",
                            "spec": {"query": query.expr, "seriesNameFormat": query.legend},
                        }
                    },
                }
                for query in panel.queries
            ],
        },
    }


def _plugin(panel: Panel) -> dict[str, Any]:
    form, label = _FORMATS[panel.unit]
    bounds = {
        "defaultColor": _COLOURS[panel.base],
        "steps": [{"value": step.value, "color": _COLOURS[step.level]} for step in panel.thresholds],
    }
    words = [{"kind": "Value", "spec": {"value": str(value), "result": {"value": word}}} for value, word in panel.states]
    match panel.look:
        case Drawing.NUMBER:
            spec: dict[str, Any] = {"calculation": "last-number", "format": dict(form), "thresholds": bounds, "sparkline": {}}
            return {"kind": "StatChart", "spec": spec | ({"mappings": words} if words else {})}
        case Drawing.STATES:
            return {
                "kind": "StatusHistoryChart",
                "spec": {"legend": {"position": "bottom"}} | ({"mappings": words} if words else {}),
            }
        case Drawing.LINES:
            axis = {"format": dict(form), "min": 0} | ({"label": label} if label else {})
            if any("-" in query.expr for query in panel.queries):
                del axis["min"]  # a difference may be below nothing, and is what one looks for
            legend = {"position": "bottom", "mode": "table", "values": ["last-number", "min", "max"]}
            spec = {"legend": legend, "yAxis": axis, "visual": {"connectNulls": False}}
            return {"kind": "TimeSeriesChart", "spec": spec | ({"thresholds": bounds} if panel.thresholds else {})}
