"""`splitwatt explain`: each rule that sets a cap is told from the others, and says what would have to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from splitwatt_cli.access import UnaskedError
from splitwatt_cli.explain.command import explain, read_decisions
from splitwatt_cli.explain.explained import explain_budget, explain_cluster, explain_node
from splitwatt_cli.explain.why import gpus_of, ground_of, why_cap
from splitwatt_cli.snapshot import named
from splitwatt_cli.status.standing import standing_of
from splitwatt_core.names import GATE_POWER, LABEL_CLUSTER, LABEL_EXCLUDED, LABEL_MODE
from support.cli_objects import budget, cluster, gpu, healthy, node, node_power, row


def code(one: Any, *, labels: dict[str, str] | None = None, **leaf: Any) -> tuple[str, str]:
    """Why one GPU has its cap, below a rack with these spec and status."""
    rack = budget("rack-a1", rack="a1", parent="row-a", **leaf)
    obj = node_power("n1", one, budgets=("rack-a1", "row-a"))
    ground = ground_of(obj, named([budget("row-a"), rack]), node("n1", labels=labels))
    why = why_cap(gpus_of(obj)[0], ground)
    return why.code, why.change


FULL = {"chargeWatts": 25_990}


@pytest.mark.parametrize(
    ("one", "leaf", "expected"),
    [
        (gpu(), {"status": FULL}, "BudgetFull"),
        (gpu(), {}, "Enough"),
        (gpu(cap_w=700), {"status": FULL}, "Maximum"),
        (gpu(cap_w=400, ceilingWatts=400), {"status": FULL}, "Ceiling"),
        (gpu(cap_w=200, phase="Unassigned"), {"status": FULL}, "Idle"),
        (gpu(cap_w=400, phase="Unassigned"), {}, "Held"),
        (gpu(cap_w=200), {"status": {"posture": "Brake"}}, "Brake"),
        (gpu(), {"status": {"posture": "Shed"}}, "Pressed"),
        (gpu(), {"frozen": True}, "Frozen"),
        (gpu(report={"ackedGrant": 6}), {}, "NotAcknowledged"),
        (gpu(report={"health": "Lost"}), {}, "Sick"),
        (gpu(cap_w=None), {}, "NotGranted"),
        (gpu(cap_w=200), {}, "Minimum"),
    ],
)
def test_each_rule_explains_its_own_caps(one: Any, leaf: dict[str, Any], expected: str) -> None:
    assert code(one, **leaf)[0] == expected


def test_what_would_have_to_change_is_a_command() -> None:
    assert code(gpu(), frozen=True)[1] == """kubectl patch pb rack-a1 --type=merge -p '{"spec":{"frozen":false}}'"""
    assert code(gpu(), status=FULL)[1].startswith("kubectl patch pb rack-a1 --type=merge")
    excluded = code(gpu(cap_w=None), labels={LABEL_EXCLUDED: "true"})
    assert excluded == ("Excluded", f"kubectl label node n1 {LABEL_EXCLUDED}-")


def test_the_fuller_of_two_budgets_is_the_one_that_is_named() -> None:
    seen = healthy(
        budgets=(
            budget("row-a", limit_w=50_000, status={"chargeWatts": 47_600}, reserveWatts=2400),
            budget("rack-a1", rack="a1", parent="row-a", status={"chargeWatts": 25_950}),
        )
    )
    told = explain_node(seen, "n1")
    assert told is not None and told.answer.startswith(
        "row-a is full: 47600 W are charged of 50000 W with 2400 W kept in reserve"
    )
    assert told.to_change == [next(iter(told.to_change))] and "patch pb row-a" in told.to_change[0]


def test_observe_says_that_nothing_is_granted_and_how_that_ends() -> None:
    watching = (budget("row-a", mode="Observe"), budget("rack-a1", rack="a1", parent="row-a"))
    seen = healthy(budgets=watching, node_powers=(node_power("n1", gpu(cap_w=None), budgets=("rack-a1", "row-a")),))
    told = explain_node(seen, "n1")
    assert (
        told is not None
        and "Observe" in told.answer
        and '"mode":"Strict"' in told.to_change[0]
        and "pb row-a" in told.to_change[0]
    )


def test_modes_say_what_they_do_with_a_cap() -> None:
    def told(one: Any, mode: str, *, labels: dict[str, str] | None = None, would_w: int | None = None) -> tuple[str, str, str]:
        root = budget("rack-a1", rack="a1", mode=mode)
        obj = node_power("n1", one)
        if would_w is not None:
            obj["spec"]["wouldBe"] = [{"uuid": "GPU-1", "wouldCapWatts": would_w}]
        why = why_cap(gpus_of(obj)[0], ground_of(obj, named([root]), node("n1", labels=labels)))
        return why.code, why.text, why.change

    code, text, change = told(gpu(cap_w=None), "Observe", would_w=420)
    assert code == "Observe" and text.endswith("Strict would grant it 420 W") and '"Strict"' in change
    code, text, change = told(gpu(cap_w=350), "Observe")
    assert code == "LeftLow" and "350 W are left" in text and '"Release"' in change
    assert told(gpu(cap_w=350), "Release")[0] == "Releasing"
    assert told(gpu(cap_w=700), "Release") == ("Released", "mode is Release: it has its default limit of 700 W back", "")
    assert told(gpu(cap_w=700, maxClockMegahertz=1200), "Release")[0] == "Releasing", "its clock is locked"
    assert told(gpu(cap_w=350), "Strict", labels={LABEL_MODE: "Release"})[0] == "Releasing", "the node's own word"


def test_a_new_budget_without_a_mode_is_in_the_one_that_its_status_says() -> None:
    root = budget("rack-a1", rack="a1", status={"mode": "Observe"})
    seen = healthy(budgets=(root,), node_powers=(node_power("n1", gpu(cap_w=None)),))
    told = explain_node(seen, "n1")
    assert told is not None and "mode is Observe" in told.answer and ("mode", "Observe") in told.facts
    leaf = explain_budget(seen, "rack-a1")
    assert leaf is not None and ("mode, policy", "Observe, PhaseAware") in leaf.facts


def test_a_budget_says_its_worst_condition_and_the_remedy() -> None:
    short = budget(
        "rack-a1", rack="a1", conditions=[row("Feasible", False, "MinimumCapsAboveLimit", "minimum caps need 900 W more")]
    )
    told = explain_budget(healthy(budgets=(short,)), "rack-a1")
    assert told is not None and told.answer == "minimum caps need 900 W more"
    assert any("limitWatts" in change for change in told.to_change)
    assert explain_budget(healthy(), "nobody") is None


def test_a_limit_that_nothing_can_keep_is_named_before_what_follows_from_it() -> None:
    rows = [
        row("WithinBudget", False, "ChargedAboveLimit", "charged 18456 W, limit 12000 W: 6456 W over, lowering"),
        row("Feasible", False, "MinimumCapsAboveLimit", "minimum caps need 6456 W more than the limit"),
    ]
    cut = budget("rack-a1", limit_w=12_000, rack="a1", conditions=rows, status={"shortWatts": 6456})
    told = explain_budget(healthy(budgets=(cut,)), "rack-a1")
    assert told is not None and told.answer == "minimum caps need 6456 W more than the limit"
    assert told.to_change[0].startswith("""kubectl patch pb rack-a1 --type=merge -p '{"spec":{"limitWatts":18456}}'""")
    assert standing_of(healthy(budgets=(cut,))).findings[0].check == "MinimumCapsAboveLimit"


def test_a_budget_names_the_budget_above_it_that_is_full() -> None:
    rows = (budget("row-a", status={"chargeWatts": 25_990}), budget("rack-a1", rack="a1", parent="row-a"))
    told = explain_budget(healthy(budgets=rows), "rack-a1")
    assert told is not None and "row-a has more" in told.answer
    assert told.rows == [{"gpus": 2, "phase": "Decode", "capWatts": "350-350", "code": "BudgetFull", "why": told.rows[0]["why"]}]


def pod(name: str, **spec: Any) -> dict[str, Any]:
    status = spec.pop("status", {"phase": "Pending"})
    meta = {"name": name, "namespace": "serving", "uid": name, "labels": {LABEL_CLUSTER: "chat"}}
    return {"metadata": meta, "spec": spec, "status": status}


def test_each_pod_says_what_it_waits_for() -> None:
    power = "1200 W are missing in rack-a1"
    obj = cluster(
        conditions=[row("PowerAdmitted", False, "InsufficientPower", power), row("Ready", False, "WaitingForPower", power)]
    )
    unready: dict[str, Any] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}
    unready["containerStatuses"] = [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]
    pods = (
        pod("a", schedulingGates=[{"name": GATE_POWER}]),
        pod("b", schedulingGates=[{"name": "others.io/gate"}]),
        pod("c", status={"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "no node"}]}),
        pod("d", nodeName="n1", status=unready),
        pod("e", nodeName="n1", status={"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
        {**pod("f"), "metadata": {"name": "f", "namespace": "elsewhere", "uid": "f", "labels": {LABEL_CLUSTER: "chat"}}},
    )
    told = explain_cluster(healthy(pods=pods, clusters=(obj,)), obj)
    assert [(r["pod"], r["code"], r["waitsFor"]) for r in told.rows] == [
        ("a", "PowerGate", "1200 W are missing in rack-a1"),
        ("b", "Gate", "another controller's scheduling gate: others.io/gate"),
        ("c", "Scheduler", "no node"),
        ("d", "Start", "ImagePullBackOff: no such image"),
    ]
    assert told.because.count("1200 W are missing in rack-a1") == 1
    assert told.answer == "1200 W are missing in rack-a1" and "kubectl scale ic chat -n serving" in told.to_change[0]


def test_a_name_that_is_nowhere_or_twice_is_one_sentence() -> None:
    seen = healthy(clusters=(cluster(), cluster(namespace="other")))
    with pytest.raises(UnaskedError, match="several namespaces: serving/chat, other/chat; say which with -n"):
        explain(seen, "ic", "chat", namespace=None)
    assert explain(seen, "ic", "other/chat", namespace=None)[0].subject == "InferenceCluster other/chat"
    assert explain(seen, "ic", "chat", namespace="serving")[0].subject == "InferenceCluster serving/chat"
    with pytest.raises(UnaskedError, match="there is no budget x: there are rack-a1, row-a"):
        explain(seen, "budget", "x", namespace=None)
    with pytest.raises(UnaskedError, match="forbidden"):
        explain(healthy(budgets=(), unread={"powerbudgets": "forbidden"}), "budget", "x", namespace=None)


def test_decisions_are_the_last_of_this_budget_with_its_newest_reasons(tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    lines: list[dict[str, Any]] = [{"time_s": t, "budget": name} for t in range(20) for name in ("a", "b")]
    lines[4]["reasons"] = [{"text": "older"}]
    lines[6]["reasons"] = [{"text": "newest"}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"budget": "a", "ti')
    found = read_decisions(log, "a")
    assert [line["time_s"] for line in found] == [19, 18, 17, 16, 15] and found[0]["reasons"] == [{"text": "newest"}]
    with pytest.raises(UnaskedError, match="cannot read --decision-log"):
        read_decisions(tmp_path / "none", "a")
