"""Do labels and budgets go together: every GPU node in one leaf, limits that can be kept, breakers above them? Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from splitwatt_core.budget.leaves import Leaves
from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.conditions import counted, some

from splitwatt_cli.conditions import condition
from splitwatt_cli.doctor.agents import gpu_nodes
from splitwatt_cli.doctor.facts import SiteFacts
from splitwatt_cli.doctor.meters import specs_of
from splitwatt_cli.finding import Finding, Gravity
from splitwatt_cli.snapshot import named

CONTINUOUS: Final = 0.8
"""Of its rating: what a breaker is loaded with for hours (NEC 210.20(A)), where it is not listed for 100 %."""


def check_labels(facts: SiteFacts) -> Iterator[Finding]:
    specs = specs_of(list(facts.seen.budgets))
    leaves = Leaves(specs.values())
    contracts = named(facts.seen.node_powers)
    outside: list[str] = []
    overlaps: dict[tuple[str, ...], list[str]] = {}
    gpus = set(gpu_nodes(facts))
    for node in facts.seen.nodes:
        name = node["metadata"]["name"]
        selecting = leaves.selecting(node["metadata"].get("labels") or {})
        if len(selecting) > 1:
            overlaps.setdefault(selecting, []).append(name)
        elif not selecting:
            counts_in = ((contracts.get(name) or {}).get("spec") or {}).get("budgets") or ()
            if counts_in:
                yield _label_gone(name, counts_in[0], specs)
            elif name in gpus:
                outside.append(name)
    for names, nodes in overlaps.items():
        text = f"{counted(len(nodes), 'node')} in several leaf budgets ({', '.join(names)}): {some(nodes)}"
        fix = f"kubectl edit pb {names[-1]}   # make the nodeSelectors disjoint"
        yield Finding(Gravity.BROKEN, "LabelOverlap", "nodes", text, fix)
    if outside and specs:
        text = f"{counted(len(outside), 'GPU node')} in no leaf budget, so nothing there is capped: {some(outside)}"
        yield Finding(Gravity.WARNING, "NoBudget", "nodes", text, f"kubectl label node {outside[0]} {_labels_of_any(specs)}")


def _label_gone(node: str, leaf: str, specs: Mapping[str, BudgetSpec]) -> Finding:
    text = f"counts in {leaf}, and no leaf budget selects it any more: a label is gone; nothing is raised there"
    selector = specs[leaf].selector if leaf in specs else None
    wanted = " ".join(f"{key}={value}" for key, value in (selector.match_labels if selector is not None else {}).items())
    fix = f"kubectl label node {node} {wanted}" if wanted else f"kubectl get pb {leaf} -o jsonpath='{{.spec.nodeSelector}}'"
    return Finding(Gravity.BROKEN, "LabelGone", f"Node {node}", text, fix)


def _labels_of_any(specs: Mapping[str, BudgetSpec]) -> str:
    for spec in specs.values():
        if spec.selector is not None and spec.selector.match_labels:
            return " ".join(f"{key}=VALUE" for key in spec.selector.match_labels)
    return "KEY=VALUE"


def check_feasible(facts: SiteFacts) -> Iterator[Finding]:
    objects = named(facts.seen.budgets)
    parents = {name: str(obj["spec"].get("parent") or "") for name, obj in objects.items()}
    for name, obj in sorted(objects.items(), key=lambda row: (row[0] in parents.values(), row[0])):
        found = condition(obj, "Feasible")
        if found is not None and found.status is False:
            short_w = (obj.get("status") or {}).get("shortWatts")
            more = "N" if short_w is None else str(obj["spec"]["limitWatts"] + short_w)
            fix = f'kubectl patch pb {name} --type=merge -p \'{{"spec":{{"limitWatts":{more}}}}}\'   # or take nodes away'
            yield Finding(Gravity.BROKEN, "Infeasible", f"PowerBudget {name}", found.message, fix, found.last_transition)
        ready = condition(obj, "Ready")
        if ready is not None and ready.reason in ("InvalidSpec", "InvalidTree"):
            yield Finding(Gravity.BROKEN, ready.reason, f"PowerBudget {name}", ready.message, f"kubectl edit pb {name}")


def check_breakers(facts: SiteFacts) -> Iterator[Finding]:
    objects = named(facts.seen.budgets)
    for name, rating_w in sorted(facts.breakers_w.items()):
        if name not in objects:
            text = f"a breaker is given for it, and there is no such budget: {some(sorted(objects)) or 'there are none'}"
            yield Finding(Gravity.WARNING, "Breaker", f"PowerBudget {name}", text)
            continue
        limit_w = objects[name]["spec"]["limitWatts"]
        fix = f'kubectl patch pb {name} --type=merge -p \'{{"spec":{{"limitWatts":{int(CONTINUOUS * rating_w)}}}}}\''
        if limit_w > rating_w:
            text = f"its limit of {limit_w} W is above its breaker's rating of {rating_w} W: the breaker comes first"
            yield Finding(Gravity.BROKEN, "Breaker", f"PowerBudget {name}", text, fix)
        elif limit_w > CONTINUOUS * rating_w:
            text = f"its limit of {limit_w} W is {limit_w / rating_w:.0%} of its breaker's {rating_w} W; for hours carry 80 %"
            yield Finding(Gravity.WARNING, "Breaker", f"PowerBudget {name}", text, f"{fix}   # unless it is listed for 100 %")
