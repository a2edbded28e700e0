"""Dashboards as Grafana's JSON, by Grafana's own builders: classic dashboards, which every version since 10 imports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from grafana_foundation_sdk.builders import common, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model

from splitwatt_panels.model import Drawing, Panel, PanelSet, PanelStep, Tone, Variable

TAG: Final = "splitwatt"
SCHEMA_VERSION: Final = 41
"""Of Grafana 11.6; later versions bring it up by themselves."""
_DATASOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_COLOURS: Final[Mapping[Tone, str]] = {Tone.GOOD: "green", Tone.WARNING: "orange", Tone.BAD: "red"}
WIDTH: Final = 24
_PER_ROW: Final = 4
"""Numbers side by side; of what has a time axis, half as many."""
HEIGHTS: Final[Mapping[Drawing, int]] = {Drawing.NUMBER: 4, Drawing.LINES: 8, Drawing.STATES: 8}

_AnyPanel = stat.Panel | timeseries.Panel | statetimeline.Panel


def dashboard_json(panels: PanelSet) -> str:
    """Equal sets give equal bytes."""
    built = _dashboard(panels).build()
    built.schema_version = SCHEMA_VERSION
    document = json.loads(json.dumps(built, cls=JSONEncoder))
    for number, panel in enumerate(document["panels"], 1):
        panel["id"] = number
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _dashboard(panels: PanelSet) -> builders.Dashboard:
    link = builders.DashboardLink("Splitwatt").type(model.DashboardLinkType.DASHBOARDS)
    source = builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
    board = (
        builders.Dashboard(f"Splitwatt / {panels.title}")
        .uid(panels.uid)
        .description(panels.description)
        .tags([TAG])
        .readonly()
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(link.tags([TAG]).as_dropdown(True).include_vars(True).keep_time(True).icon("external link"))
        .with_variable(source)
    )
    for variable in panels.variables:
        board = board.with_variable(_variable(variable))
    y = 0
    for row in panels.rows:
        board = board.with_row(builders.Row(row.title).grid_pos(model.GridPos(h=1, w=WIDTH, x=0, y=y)))
        y += 1
        for group in lines_of(row.panels):
            height, width = max(HEIGHTS[panel.look] for panel in group), WIDTH // len(group)
            for at, panel in enumerate(group):
                board = board.with_panel(_panel(panel).grid_pos(model.GridPos(h=height, w=width, x=at * width, y=y)))
            y += height
    return board


def lines_of(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Panels that stand side by side: of one height, numbers among numbers."""
    lines: list[list[Panel]] = []
    for panel in panels:
        number = panel.look is Drawing.NUMBER
        fits = _PER_ROW if number else _PER_ROW // 2
        if lines and len(lines[-1]) < fits and (lines[-1][0].look is Drawing.NUMBER) == number:
            lines[-1].append(panel)
        else:
            lines.append([panel])
    return lines


def _variable(variable: Variable) -> Builder[model.VariableModel]:
    return (
        builders.QueryVariable(variable.name)
        .label(variable.title)
        .datasource(_DATASOURCE)
        .query({"query": f"label_values({variable.metric}, {variable.label})", "refId": "StandardVariableQuery"})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _panel(panel: Panel) -> _AnyPanel:
    built: _AnyPanel
    match panel.look:
        case Drawing.NUMBER:
            reduce = common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
            built = stat.Panel().graph_mode(common_model.BigValueGraphMode.AREA).reduce_options(reduce)
        case Drawing.STATES:
            built = statetimeline.Panel().fill_opacity(70).show_value(common_model.VisibilityMode.AUTO).merge_values(True)
        case Drawing.LINES:
            legend = common.VizLegendOptions().show_legend(True).placement(common_model.LegendPlacement.BOTTOM)
            legend = legend.display_mode(common_model.LegendDisplayMode.TABLE).calcs(["lastNotNull", "min", "max"])
            tooltip = common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI)
            built = timeseries.Panel().legend(legend).tooltip(tooltip).span_nulls(False).axis_soft_min(0)
            if panel.thresholds:
                style = common.GraphThresholdsStyleConfig().mode(common_model.GraphThresholdsStyleMode.DASHED)
                built = built.thresholds_style(style)
    built = (
        built.title(panel.title)
        .description(f"{panel.description}\n\n{panel.why}")
        .unit(panel.unit.value)
        .datasource(_DATASOURCE)
        .thresholds(_thresholds(panel.base, panel.thresholds))
    )
    if panel.states:
        words = {str(value): model.ValueMappingResult(text=word, index=at) for at, (value, word) in enumerate(panel.states)}
        built = built.mappings([model.ValueMap(options=words)])
    for at, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + at))
        built = built.with_target(target.datasource(_DATASOURCE).range())
    return built


def _thresholds(base: Tone, steps: Sequence[PanelStep]) -> builders.ThresholdsConfig:
    rows = [model.Threshold(value=None, color=_COLOURS[base])]
    rows += [model.Threshold(value=step.value, color=_COLOURS[step.level]) for step in steps]
    return builders.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(rows)
