"""NodePower on the wire: what is wrong with an object is said with the field and what it must be."""

from __future__ import annotations

from typing import Any

import pytest
from splitwatt_core.protocol.contract import (
    MAX_GPUS_PER_NODE,
    ContractError,
    GpuStatus,
    Grant,
    Health,
    Mode,
    Phase,
    Spec,
    Status,
    Use,
    node_power_from_wire,
    node_power_to_apply,
    spec_from_wire,
    spec_to_wire,
    status_from_wire,
    status_to_wire,
)


def wire(**changes: Any) -> dict[str, Any]:
    return {"metadata": {"name": "n1", "uid": "u1", "resourceVersion": "7"}, **changes}


def gpu(**changes: Any) -> dict[str, Any]:
    return {"uuid": "GPU-1", "grant": 3, "capWatts": 400, **changes}


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"metadata": {"uid": "u", "resourceVersion": "1"}}, "metadata.name is missing"),
        ({"metadata": {"name": "n", "resourceVersion": "1"}}, "metadata.uid is missing"),
        ({"metadata": {"name": "n", "uid": "u"}}, "metadata.resourceVersion is missing"),
        (
            {"metadata": {"name": "n", "uid": "u", "resourceVersion": "new"}},
            "metadata.resourceVersion must be a number, not 'new'",
        ),
        (wire(spec=[]), "NodePower.spec must be dict, not []"),
        (wire(spec={"term": "4"}), "spec.term must be int, not '4'"),
        (wire(spec={"term": True}), "spec.term must be int, not True"),
        (wire(spec={"mode": "Loose"}), "spec.mode must be one of Observe, Strict, Oversubscribed, Release, not 'Loose'"),
        (wire(spec={"mode": 3}), "spec.mode must be str, not 3"),
        (wire(spec={"budgets": ["a", 3]}), "spec.budgets[1] must be str, not 3"),
        (wire(spec={"gpus": {}, "term": 1}), "spec.gpus must be list, not {}"),
        (wire(spec={"gpus": ["GPU-1"]}), "spec.gpus[0] must be dict, not 'GPU-1'"),
        (wire(spec={"gpus": [gpu(), {"capWatts": 4}]}), "spec.gpus[1].uuid is missing"),
        (wire(spec={"gpus": [gpu(capWatts=0)]}), "spec.gpus[0].capWatts must be above 0, not 0"),
        (wire(spec={"gpus": [gpu(capWatts=1.5)]}), "spec.gpus[0].capWatts must be int, not 1.5"),
        (wire(spec={"gpus": [gpu(phase=3)]}), "spec.gpus[0].phase must be str, not 3"),
        (
            wire(spec={"gpus": [gpu(uuid=f"GPU-{i}") for i in range(MAX_GPUS_PER_NODE + 1)]}),
            "spec.gpus has 65 entries; a node has at most 64 GPUs",
        ),
        (wire(status="fine"), "NodePower.status must be dict, not 'fine'"),
        (wire(status={"conditions": ["Ready"]}), "status.conditions[0] must be dict, not 'Ready'"),
        (wire(status={"gpus": [{"ackedGrant": 3}]}), "status.gpus[0].uuid is missing"),
        (wire(status={"gpus": [{"uuid": "g", "ackedGrant": "3"}]}), "status.gpus[0].ackedGrant must be int, not '3'"),
        (wire(status={"gpus": [{"uuid": "g", "health": None}]}), "status.gpus[0].health must be str, not None"),
        (
            wire(status={"gpus": [{"uuid": "g", "workload": {"pod": 7}}]}),
            "status.gpus[0].workload.pod must be str, not 7",
        ),
    ],
)
def test_a_wrong_object_is_refused_with_the_field_and_what_it_must_be(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ContractError) as refused:
        node_power_from_wire(raw)
    assert str(refused.value) == sentence


def test_an_object_without_spec_and_status_is_whole() -> None:
    seen = node_power_from_wire(wire())
    assert (seen.spec, seen.status, seen.resource_version) == (None, Status(), 7)


def test_unknown_fields_are_passed_over_so_that_an_old_agent_reads_a_new_object() -> None:
    spec = spec_from_wire({"term": 4, "colour": "red", "gpus": [gpu(tariff="night")]})
    assert spec == Spec(term=4, for_uid="", gpus=(Grant("GPU-1", 3, cap_w=400, safe_cap_w=400, charge_w=400),))


def test_a_word_of_a_newer_release_about_one_gpu_keeps_nobody_from_reading_the_others() -> None:
    """Else no cap of that node could be lowered while agents or the operator are replaced."""
    rows = [{"uuid": "g", "ackedGrant": 3, "health": "Dizzy", "use": "Dreaming"}, {"uuid": "h", "health": "OK", "use": "Idle"}]
    seen = node_power_from_wire(wire(spec={"term": 1, "gpus": [gpu(phase="Cooking")]}, status={"gpus": rows}))
    assert [(row.health, row.use) for row in seen.status.gpus] == [(Health.UNKNOWN, Use.UNKNOWN), (Health.OK, Use.IDLE)]
    assert seen.spec is not None and seen.spec.gpus[0].phase is Phase.UNASSIGNED and seen.spec.gpus[0].cap_w == 400


def test_a_gpu_whose_health_is_not_said_is_of_unknown_health() -> None:
    assert status_from_wire({"gpus": [{"uuid": "g"}]}).gpus[0].health is Health.UNKNOWN


def test_optional_fields_stay_away_from_the_wire_when_unset() -> None:
    row = spec_to_wire(Spec(1, "u", gpus=(Grant("g", 1, cap_w=300, safe_cap_w=300, charge_w=700),)))
    assert "leaseName" not in row and "nodeLimitWatts" not in row
    assert row["gpus"][0] == {
        "uuid": "g",
        "grant": 1,
        "capWatts": 300,
        "safeCapWatts": 300,
        "chargeWatts": 700,
        "phase": "Unassigned",
    }


def test_the_summary_has_no_sum_while_one_limit_is_unreadable() -> None:
    readable, sick = GpuStatus("a", enforced_w=300), GpuStatus("b", health=Health.LOST)
    assert status_to_wire(Status(gpus=(readable, readable)))["enforcedCapWattsTotal"] == 600
    summary = status_to_wire(Status(gpus=(readable, sick)))
    assert "enforcedCapWattsTotal" not in summary
    assert (summary["gpuCount"], summary["healthyGpuCount"]) == (2, 1)


def test_a_spec_is_applied_to_the_very_version_it_was_decided_on() -> None:
    body = node_power_to_apply("n1", "u1", 42, Spec(term=3, for_uid="u1", mode=Mode.OBSERVE))
    assert body["metadata"] == {"name": "n1", "uid": "u1", "resourceVersion": "42"}
    assert body["spec"]["mode"] == "Observe"
    assert Phase.UNASSIGNED == "Unassigned"
