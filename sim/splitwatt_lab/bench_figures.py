"""The figures that `splitwatt bench` reports: their names, aims and notes, and how a run is shown and written.

Names carry their unit and are the keys of bench.json. A figure without an aim is there for whoever wants to know why
another one is what it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from rich.table import Table

OUT_FILE: Final = "bench.json"


@dataclass(frozen=True, slots=True)
class BenchFigure:
    """`aim`: the value is to be at most this; None: only reported. `note` says what exactly was measured."""

    name: str
    aim: float | None
    note: str

    def met(self, value: float) -> bool | None:
        """None without an aim. What is not a number meets nothing."""
        return None if self.aim is None else value <= self.aim


FIGURES: Final[Mapping[str, Sequence[BenchFigure]]] = {
    "allocator": (
        BenchFigure("allocator_64_ms", None, "one PhaseAware decision, median of 9"),
        BenchFigure("allocator_1000_ms", 20.0, "the same over 1 000 GPUs"),
        BenchFigure("allocator_80000_ms", 500.0, "the same over 80 000 GPUs"),
        BenchFigure("allocator_uniform_64_ms", None, "one Uniform decision"),
        BenchFigure("allocator_uniform_1000_ms", None, "the same over 1 000 GPUs"),
        BenchFigure("allocator_uniform_80000_ms", None, "the same over 80 000 GPUs"),
        BenchFigure("keeper_step_1000_ms", None, "whole step with ledger and reports, 1 000 GPUs, nothing changes, median"),
        BenchFigure("keeper_cut_1000_ms", None, "the step that answers a lowered limit: every cap falls"),
        BenchFigure("keeper_500_roots_ms", 50.0, "whole step over 500 root budgets without nodes, nothing changes, median"),
        BenchFigure("keeper_500_roots_with_nodes_ms", None, "the same with a node in each: 500 trees, 4 000 GPUs"),
        BenchFigure(
            "keeper_500_roots_one_cut_ms", None, "0.1 s after such a step: one limit was lowered, the others are as they were"
        ),
    ),
    "agent": (
        BenchFigure("agent_core_percent", 1.0, "one real agent, 5 Hz, 8 GPUs, scraped every second: CPU time of one core"),
        BenchFigure("agent_rss_mib", 80.0, "the same process, resident after the measurement"),
        BenchFigure("patch_to_enforced_one_node_p50_s", None, "kubectl started to last cap fallen, on this one node"),
    ),
    "operator": (
        BenchFigure("operator_rss_mib", 200.0, "real operator, 200 kwok nodes, stand-in agents; highest of the steady minute"),
        BenchFigure("api_writes_per_node_per_s", 0.1, "API server's count of NodePower writes, both sides; stand-in agents"),
        BenchFigure("api_budget_writes_per_s", None, "its count of PowerBudget writes, 21 budgets together"),
        BenchFigure("operator_core_percent", None, "CPU time of one core in that minute"),
        BenchFigure("adoption_s", None, "from the first budget seen to 1 600 GPUs acknowledged; slowest budget"),
    ),
    "patch": (
        BenchFigure(
            "patch_to_enforced_p50_s", None, "kubectl started to last cap fallen, 40 nodes, real agents on this one machine"
        ),
        BenchFigure("patch_to_enforced_p99_s", None, "the same, nearest rank: of 30 steps the slowest"),
        BenchFigure("kubectl_patch_p50_s", None, "of it: kubectl's own time, until it returned"),
        BenchFigure("accepted_to_enforced_p50_s", None, "of it: after kubectl returned"),
        BenchFigure("look_gap_p99_s", None, "between two looks at the caps: how sharp the clock of this measurement is"),
    ),
    "takeover": (
        BenchFigure("takeover_standby_max_s", 5.0, "kill -9 of the leader: longest time without a decision, a standby beside it"),
        BenchFigure("takeover_standby_p50_s", None, "the same, median"),
        BenchFigure("takeover_restart_max_s", 5.0, "the same, no standby: started again at once in its place"),
        BenchFigure("takeover_restart_p50_s", None, "the same, median"),
        BenchFigure("takeover_late_restart_s", None, "started again 22 s later: from its start to its first decision"),
    ),
    "thousand": (
        BenchFigure("nodes_of_1000", None, "how many of the thousand nodes there were (--nodes)"),
        BenchFigure(
            "adoption_1000_s", 30.0, "1 000 kwok nodes, 8 000 GPUs, 101 metered budgets; stand-in agents; slowest budget"
        ),
        BenchFigure("refused_specs_1000", None, "the operator's writes that the API server refused for their version until then"),
        BenchFigure("refused_statuses_1000", None, "the stand-in agents' own"),
        BenchFigure("telemetry_fresh_1000_percent", None, "of the budget-seconds of a steady minute (aim: 99 and more)"),
        BenchFigure("operator_core_1000_percent", 40.0, "CPU time of one core in that minute"),
        BenchFigure("operator_rss_1000_mib", 250.0, "highest of that minute"),
        BenchFigure("api_writes_per_node_1000_per_s", None, "NodePower writes of both sides in that minute"),
        BenchFigure(
            "patch_to_caps_1000_p50_s", 2.0, "patch of one rack's limit to its nodes' enforced caps while the rest swings"
        ),
        BenchFigure("patch_to_caps_1000_max_s", None, "the same, slowest of 3"),
    ),
}
"""By measurement, in the order in which they run and are shown."""

GROUP_OF: Final[Mapping[str, str]] = {f.name: group for group, figures in FIGURES.items() for f in figures}


class Progress(Protocol):
    """Who watches a measurement."""

    def stage(self, what: str) -> None:
        """Something begins."""

    def waiting(self, what: str, done_s: float, total_s: float) -> None:
        """Something lasts: `done_s` of `total_s`. Called about once a second."""


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that at least `share` of all values do not exceed. Raises ValueError on none."""
    if not values or not 0 < share <= 1:
        raise ValueError("a percentile needs values, and a share above 0 and at most 1")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def choose(names: Sequence[str]) -> Sequence[str]:
    """The measurements that give these figures; a measurement may be named itself. All, for no name.

    Raises ValueError with a sentence that names what is known."""
    wanted = set()
    for name in names:
        group = name if name in FIGURES else GROUP_OF.get(name)
        if group is None:
            raise ValueError(f"there is no figure {name!r}; choose of {', '.join(FIGURES)}, or of {', '.join(GROUP_OF)}")
        wanted.add(group)
    return [group for group in FIGURES if not names or group in wanted]


def table(values: Mapping[str, float]) -> Table:
    """Figure, value, aim, ok? and what it is, for the figures that were measured."""
    shown = Table(title="splitwatt bench", title_justify="left", pad_edge=False)
    shown.add_column("figure", no_wrap=True)
    shown.add_column("value", justify="right", no_wrap=True)
    shown.add_column("aim", justify="right", no_wrap=True)
    shown.add_column("ok?", no_wrap=True)
    shown.add_column("what was measured", style="dim", overflow="fold")
    for figures in FIGURES.values():
        mine = [figure for figure in figures if figure.name in values]
        for figure in mine:
            met = figure.met(values[figure.name])
            shown.add_row(
                figure.name,
                f"{values[figure.name]:.4g}",
                "" if figure.aim is None else f"≤ {figure.aim:g}",
                {None: "", True: "[green]yes[/green]", False: "[red]no[/red]"}[met],
                figure.note,
                end_section=figure is mine[-1],
            )
    return shown


def write(values: Mapping[str, float], out: Path) -> Path:
    """The flat file: name -> number. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / OUT_FILE
    file.write_text(json.dumps(values, indent=1) + "\n")
    return file
