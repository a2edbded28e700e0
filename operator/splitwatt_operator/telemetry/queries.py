"""What meters and agents are asked in PromQL, and what their answers come to.

One query per meter fetches the sum, the count, the extremes and the oldest sample's time at one evaluation, so that they
belong together; `timestamp()` gives the scrape's own time, which an aggregated value would have lost. Agents' readings come by
two queries for all nodes at once, one row per scraped agent, so that two agents that both say they are of one node (two
clusters behind one end point, two scrape jobs) are seen as two and never added up.

Protected: an empty answer and a watt of zero stay two different things (I5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from splitwatt_api.promql import with_matchers
from splitwatt_core.budget.keeper import MeterFailure, MeterReading
from splitwatt_core.budget.meters.folding import Family, MeterQuestion
from splitwatt_core.budget.tree import MeterSpec
from splitwatt_core.names import L_GPU, L_NODE, L_ROLE, M_GPU_POWER_WATTS

from splitwatt_operator.telemetry.prometheus import Sample

AGGREGATES: Final = {"Sum": "sum", "Average": "avg", "Max": "max"}
PART: Final = "splitwatt_part"
"""Label that tells the parts of a meter's query apart."""
SLOT: Final = "splitwatt_slot"
"""Label that tells the meters of a joint query apart."""
MAX_SHOWN_LABELS: Final = 4


@dataclass(frozen=True, slots=True)
class AgentReading:
    """`gpus`: of how many GPUs `power_w` is the sum, None where the server does not tell."""

    power_w: float
    sampled_s: float
    gpus: int | None = None


def meter_query(meter: MeterSpec, matchers: Sequence[str] = ()) -> str:
    """PromQL for all parts. The selectors must have passed `problem_of`. Raises KeyError for an unknown aggregate."""
    asked = question(meter, matchers)
    return _parts(asked.aggregation, asked.selector, asked.age_selector)


def question(meter: MeterSpec, matchers: Sequence[str] = ()) -> MeterQuestion:
    """Raises KeyError for an unknown aggregate."""
    return MeterQuestion(
        selector=with_matchers(meter.selector, matchers),
        age_selector=with_matchers(meter.age_selector or meter.selector, matchers),
        aggregation=AGGREGATES[meter.aggregate],
    )


def family_query(family: Family, values: Sequence[str]) -> str:
    """PromQL for all parts of these meters of a family, one row of each part for each; `shared_out` tells whose they are."""
    selector, aged = family.selectors(values)
    return _parts(family.aggregation, selector, aged, by=f" by ({family.label}) ")


def shared_out(samples: Sequence[Sample], family: Family, queries: Sequence[str]) -> list[list[Sample]] | None:
    """The rows of each of these members; None where one belongs to nobody who was asked about."""
    found: dict[str, list[Sample]] = {query: [] for query in queries}
    for sample in samples:
        rows = found.get(family.owner(sample.labels) or "")
        if rows is None:
            return None
        rows.append(sample)
    return list(found.values())


def _parts(aggregation: str, selector: str, aged: str, *, by: str = "") -> str:
    parts = {
        "value": f"{aggregation}{by}({selector})",
        "count": f"count{by}({selector})",
        "least": f"min{by}({selector})",
        "most": f"max{by}({selector})",
        "oldest": f"min{by}(timestamp({aged}))",
    }
    return " or ".join(f'label_replace({query}, "{PART}", "{part}", "", "")' for part, query in parts.items())


def reading_of(meter: MeterSpec, samples: Sequence[Sample]) -> MeterReading | MeterFailure:
    """In watts."""
    if len({sample.labels.get(PART) for sample in samples}) < len(samples):
        return MeterFailure(
            "the query was answered more than once: several tenants or clusters behind one end point; "
            "name one (--prometheus-header, --prometheus-matcher)"
        )
    parts = {sample.labels.get(PART): sample.value for sample in samples}
    unit_w = meter.watts_per_unit
    if "oldest" not in parts and "count" in parts and meter.age_selector is not None:
        return MeterFailure(f"no series matches meter.ageSelector {meter.age_selector} now: its source is gone")
    if "value" not in parts and "count" in parts:
        return MeterFailure("the meter's series are there and hold no number (NaN or infinite)")
    try:
        return MeterReading(
            power_w=unit_w * parts["value"],
            sampled_s=parts["oldest"],
            series=int(parts["count"]),
            extremes_w=(unit_w * parts["least"], unit_w * parts["most"]) if "least" in parts and "most" in parts else None,
        )
    except KeyError:
        return MeterFailure("no series matches the meter's selector now")


def joint_query(queries: Sequence[str]) -> str:
    """Several meters' queries in one; `split` tells their answers apart."""
    return " or ".join(slotted(query, slot) for slot, query in enumerate(queries))


def slotted(query: str, slot: int) -> str:
    return f'label_replace({query}, "{SLOT}", "{slot}", "", "")'


def split(samples: Sequence[Sample], count: int) -> list[list[Sample]] | None:
    """The answers of `count` meters by their slots; None where a row belongs to nobody who was asked about."""
    found: list[list[Sample]] = [[] for _ in range(count)]
    slots = {str(slot): rows for slot, rows in enumerate(found)}
    for sample in samples:
        rows = slots.get(sample.labels.get(SLOT, ""))
        if rows is None:
            return None
        rows.append(sample)
    return found


def agent_queries(matchers: Sequence[str] = ()) -> tuple[str, str]:
    """PromQL for watts, and for sample times with how many GPUs were read, one row of each per scraped agent with all its
    labels but those of its GPUs."""
    series = with_matchers(M_GPU_POWER_WATTS, matchers)
    without = f"without ({L_GPU}, {L_ROLE})"
    count = f'label_replace(count {without} ({series}), "{PART}", "count", "", "")'
    return f"sum {without} ({series})", f"min {without} (timestamp({series})) or {count}"


def agents_of(
    power: Sequence[Sample], times: Sequence[Sample], *, silent_s: float
) -> tuple[dict[str, AgentReading], dict[str, str]]:
    """Readings by node, and for nodes with two agents the sentence that names both. A row that is older than its rival by
    `silent_s` is of a former agent, whose series some servers show for minutes; rows without a node or a time are nobody's."""
    sampled = {frozenset(row.labels.items()): row.value for row in times}
    rows: dict[str, list[tuple[float, Sample]]] = {}
    for row in power:
        node, sampled_s = row.labels.get(L_NODE), sampled.get(frozenset(row.labels.items()))
        if node and sampled_s is not None:
            rows.setdefault(node, []).append((sampled_s, row))
    readings: dict[str, AgentReading] = {}
    doubts: dict[str, str] = {}
    for node, found in rows.items():
        newest_s = max(sampled_s for sampled_s, _ in found)
        living = [(sampled_s, row) for sampled_s, row in found if newest_s - sampled_s <= silent_s]
        if len(living) == 1:
            sampled_s, row = living[0]
            gpus = sampled.get(frozenset((row.labels | {PART: "count"}).items()))
            readings[node] = AgentReading(row.value, sampled_s, None if gpus is None else int(gpus))
        else:
            first, second = (row.labels for _, row in living[:2])
            doubts[node] = (
                f"{len(living)} agents say they are of node {node}: {_apart(first, second)} and {_apart(second, first)}; "
                "keep one by a matcher in every query (--prometheus-matcher, operator.prometheus.matchers)"
            )
    return readings, doubts


def _apart(labels: Mapping[str, str], other: Mapping[str, str]) -> str:
    """What tells one label set from another."""
    differing = sorted(name for name in labels if labels[name] != other.get(name))
    shown = ",".join(f'{name}="{labels[name]}"' for name in differing[:MAX_SHOWN_LABELS])
    return f"{{{shown}}}"
