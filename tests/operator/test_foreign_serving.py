"""Other people's serving under one budget: the operator as a process, a real API server, pods that carry labels alone."""

from __future__ import annotations

from typing import Any

from splitwatt_shell.waiting import NotInTimeError
from support.serving_site import GPUS, MAX_W, OperatorProcess, Site
from support.waiting import eventually


def settled(site: Site, node: int, phase: str, cap_w: int) -> None:
    def there() -> bool:
        lines = site.lines(node)
        return len(lines) == GPUS and {(line.get("phase"), line["capWatts"]) for line in lines} == {(phase, cap_w)}

    try:
        eventually(f"node {node} as {phase} at {cap_w} W", there)
    except NotInTimeError as late:
        raise AssertionError(f"wanted {phase} at {cap_w} W, has {site.lines(node)}: {site.budget_conditions()}") from late


def selector(**labels: str) -> dict[str, Any]:
    return {"matchLabels": labels}


DECODE_W, PREFILL_W = 399, MAX_W
"""An H100's natural draws with the margin, by the shipped profile; a prefill GPU's is above its highest cap."""


def test_foreign_pairs_a_training_pod_and_a_rule_under_one_budget(site: Site, operator: OperatorProcess) -> None:
    """They run before there is a budget, at full caps; without a meter nothing is raised in this site, and what is lowered is
    lowered by phase."""
    site.add_nodes(5)
    site.foreign("llmd-decode", node=0, **{"llm-d.ai/role": "decode"})
    site.foreign("llmd-prefill", node=1, **{"llm-d.ai/role": "prefill"})
    site.foreign("dynamo-decode", node=2, **{"nvidia.com/dynamo-component-type": "decode"})
    site.foreign("train", node=3, app="train")
    site.foreign("plain", node=4, app="plain")
    limit_w = 60_000  # also while each node counts at its flat rate, before its agent is heard
    site.limit(limit_w)
    settled(site, 0, "Decode", DECODE_W)
    settled(site, 1, "Prefill", PREFILL_W)
    settled(site, 2, "Decode", DECODE_W)
    settled(site, 3, "Prefill", MAX_W)
    settled(site, 4, "Prefill", MAX_W)
    told = "2 pods of which no known label and no rule says a phase are given no less than prefill: "
    eventually("the strangers are told", lambda: told in site.budget_conditions()["OwnersKnown"]["message"])

    rule = {"podSelector": selector(app="plain"), "phase": "Decode", "priority": "High"}
    elsewhere = {**rule, "namespaceSelector": selector(team="of another one"), "priority": 7}
    here = {**rule, "namespaceSelector": selector(**{"kubernetes.io/metadata.name": site.namespace})}
    site.limit(limit_w, workloads=[elsewhere, here])
    settled(site, 4, "Decode", DECODE_W)
    assert {line["priority"] for line in site.lines(4)} == {100}
    one = f"1 pod of which no known label and no rule says a phase is given no less than prefill: {site.namespace}/train"
    eventually("the stranger is told", lambda: one in site.budget_conditions()["OwnersKnown"]["message"])

    # What vanishes while no operator runs is known from the lines, and said.
    operator.crash()
    site.kubectl("label", "pod", "dynamo-decode", "nvidia.com/dynamo-component-type-")
    operator.start()
    lost = f"1 pod to look at: {site.namespace}/dynamo-decode: its labels and rules say no phase any more"
    eventually("the lost label is told", lambda: lost in site.budget_conditions()["OwnersKnown"]["message"])
    for node, phase, cap_w in (
        (0, "Decode", DECODE_W),
        (1, "Prefill", PREFILL_W),
        (2, "Decode", DECODE_W),
        (4, "Decode", DECODE_W),
    ):
        settled(site, node, phase, cap_w)
