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
    site.add_nodes(5)
    site.limit(5 * GPUS * MAX_W + 10_000)
    site.foreign("llmd-decode", node=0, **{"llm-d.ai/role": "decode"})
    site.foreign("llmd-prefill", node=1, **{"llm-d.ai/role": "prefill"})
    site.foreign("dynamo-decode", node=2, **{"nvidia.com/dynamo-component-type": "decode"})
    site.foreign("train", node=3, app="train")
    site.foreign("plain", node=4, app="plain")
    settled(site, 0, "Decode", DECODE_W)
    settled(site, 1, "Prefill", PREFILL_W)
    settled(site, 2, "Decode", DECODE_W)
    settled(site, 3, "Prefill", MAX_W)
    strangers = f"2 pods of which no known label and no rule says a phase are given no less than prefill: {site.namespace}/"
    eventually("the strangers are told", lambda: strangers in site.budget_conditions()["OwnersKnown"]["message"])

    rules = [
        {
            "podSelector": selector(app="plain"),
            "namespaceSelector": selector(**{"kubernetes.io/metadata.name": site.namespace}),
            "phase": "Decode",
            "priority": "High",
        }
    ]
    site.limit(5 * GPUS * MAX_W + 10_000, workloads=rules)
    settled(site, 4, "Decode", DECODE_W)
    assert {line["priority"] for line in site.lines(4)} == {100}

    # What vanishes raises nothing, and who comes after a crash finds everything as it was.
    site.kubectl("label", "pod", "dynamo-decode", "nvidia.com/dynamo-component-type-")
    before = [site.lines(node) for node in range(5)]
    operator.crash()
    operator.start()
    site.foreign("late", node=3, app="late")
    site.kubectl("label", "pod", "llmd-decode", "llm-d.ai/role-")
    site.kubectl("label", "pod", "llmd-prefill", "note=x")
    eventually("the label was read", lambda: site.get("pod", "llmd-prefill"))
    caps = [[line["capWatts"] for line in lines] for lines in before]
    assert [[line["capWatts"] for line in site.lines(node)] for node in (0, 1, 4)] == [caps[0], caps[1], caps[4]]
