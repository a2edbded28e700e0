"""`TelemetryFresh`: whether what a budget is measured by can be believed now, and what to do where it cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from splitwatt_core.budget.books import Book
from splitwatt_core.budget.moment import Moment
from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.conditions import Condition, some

KIND: Final = "TelemetryFresh"


class SilentAgent(NamedTuple):
    """A node without a fresh sample of its agent. `age_s`: of the last one, infinite where none ever came."""

    age_s: float
    node: str
    allowed_s: float
    problem: str


def silent_agents(m: Moment) -> Mapping[str, Sequence[SilentAgent]]:
    """By budget, of those without a meter, for theirs are the readings that stand in for one."""
    bare = {spec.name for spec in m.budgets if spec.meter is None}
    found: dict[str, list[SilentAgent]] = {}
    for p in m.placements if bare else ():
        node = p.node
        if node.sample_stale(m.now_s):
            row = SilentAgent(m.now_s - node.sample_s, node.name, node.agent_silent_s, node.sample_problem)
            for name in m.tree.chain(p.leaves[0]):
                if name in bare:
                    found.setdefault(name, []).append(row)
    return found


def telemetry_fresh(spec: BudgetSpec, book: Book, now_s: float, *, nodes: int, silent: Sequence[SilentAgent] = ()) -> Condition:
    """`nodes`: how many there are below it; `silent`: those of them without a fresh sample."""
    if spec.meter is None:
        if not nodes:
            return Condition(
                KIND,
                False,
                "NoNodes",
                "no meter, and no node whose agent could tell, here or below: label nodes or check nodeSelector",
            )
        if book.measured_w is None:
            return Condition(KIND, False, "AgentsSilent", f"no meter, and {_silence(silent)}")
        return Condition(KIND, True, "AgentsSum", "no meter: the agents' sum is used")
    doubt = book.meter.doubt
    if doubt.contradicted:
        used = "nothing" if book.measured_w is None else f"the agents' sum with what is declared, {book.measured_w:.0f} W,"
        text = (
            f"the meter reads {doubt.meter_w:.0f} W while the GPUs behind it draw {doubt.drawn_w:.0f} W: "
            f"look at the meter, meter.selector and meter.scale; until then {used} is used instead"
        )
        return Condition(KIND, False, "Contradicted", text)
    if book.meter.refused:
        return Condition(KIND, False, "Implausible", book.meter.refused)
    if book.fresh_reading(spec, now_s) is None:
        return Condition(KIND, False, "MeterStale", f"no fresh meter reading: {book.meter.stale_reason(spec.meter, now_s)}")
    if book.correction.power_w > 0:
        text = f"the meter shows {book.correction.power_w:.0f} W more than declared: raise nonGpuWattsPerNode or fixedWatts"
        return Condition(KIND, True, "NonGpuUnderDeclared", text)
    return Condition(KIND, True, "Fresh", "the meter's samples are fresh")


def _silence(silent: Sequence[SilentAgent]) -> str:
    """The worst of what is wrong: series that cannot be told apart, agents that are not scraped, samples that are too old."""
    if not silent:
        return "not every agent gave a sample lately"
    if problem := next((row.problem for row in silent if row.problem), ""):
        return problem
    never = [row.node for row in silent if not math.isfinite(row.age_s)]
    if never:
        return f"Prometheus has no sample of the agents on {some(never)}: does an agent run there, and is it scraped?"
    oldest_s = max(row.age_s for row in silent)
    return (
        f"the agents' samples are {oldest_s:.0f} s old on {some([row.node for row in silent])}: scrape interval? make it "
        f"shorter, or the operator's --agent-silence-seconds, now {silent[0].allowed_s:.0f}, longer"
    )
