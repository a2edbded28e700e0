"""Whatever the operator or an agent can say survives the wire unchanged, through JSON and back."""

from __future__ import annotations

import json
from dataclasses import fields, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_core.conditions import Condition
from splitwatt_core.protocol.contract import (
    MAX_GPUS_PER_NODE,
    GpuStatus,
    Grant,
    Health,
    Mode,
    Phase,
    PowerClass,
    Spec,
    Status,
    Use,
    Workload,
    node_power_from_wire,
    node_power_to_apply,
    spec_from_wire,
    spec_to_wire,
    status_from_wire,
    status_to_wire,
)

WORDS = st.text(st.characters(categories=("L", "Nd"), include_characters="-/."), min_size=1, max_size=12)
WATTS = st.integers(1, 100_000)
GRANT_NUMBERS = st.integers(0, 2**53)

GRANTS = st.builds(
    Grant,
    uuid=WORDS,
    grant=GRANT_NUMBERS,
    cap_w=WATTS,
    safe_cap_w=WATTS,
    charge_w=WATTS,
    max_clock_mhz=st.none() | st.integers(1, 3000),
    phase=st.sampled_from(Phase),
    power_class=st.none() | st.builds(PowerClass, st.integers(-1000, 1000), WATTS),
)
SPECS = st.builds(
    Spec,
    term=st.integers(0, 10_000),
    for_uid=WORDS,
    mode=st.sampled_from(Mode),
    lease_name=st.just("") | WORDS,
    node_limit_w=st.none() | WATTS,
    budgets=st.lists(WORDS, max_size=3).map(tuple),
    gpus=st.lists(GRANTS, max_size=MAX_GPUS_PER_NODE).map(tuple),
)
GPU_STATUSES = st.builds(
    GpuStatus,
    uuid=WORDS,
    acked_grant=GRANT_NUMBERS,
    management_w=st.none() | WATTS,
    enforced_w=st.none() | WATTS,
    min_w=st.integers(0, 1000),
    max_w=st.integers(0, 1000),
    default_w=st.integers(0, 1000),
    model=st.just("") | WORDS,
    health=st.sampled_from(Health),
    workload=st.none() | st.builds(Workload, WORDS, WORDS),
    use=st.sampled_from(Use),
    floor_w=st.integers(0, 1000),
).flatmap(
    lambda line: st.lists(st.builds(Workload, WORDS, WORDS), max_size=3).map(
        lambda others: replace(line, workloads=(line.workload, *others)) if line.workload and others else line
    )
)
STATUSES = st.builds(
    Status,
    observed_uid=st.just("") | WORDS,
    observed_term=st.integers(0, 10_000),
    boot_id=st.just("") | WORDS,
    gpus=st.lists(GPU_STATUSES, max_size=MAX_GPUS_PER_NODE).map(tuple),
    conditions=st.lists(st.builds(Condition, WORDS, st.booleans(), WORDS, WORDS, WORDS), max_size=3).map(tuple),
    unresolved=st.lists(WORDS, max_size=3).map(tuple),
)


@given(spec=SPECS)
def test_a_spec_survives_the_wire(spec: Spec) -> None:
    assert spec_from_wire(json.loads(json.dumps(spec_to_wire(spec)))) == spec


@given(status=STATUSES)
def test_a_status_survives_the_wire(status: Status) -> None:
    assert status_from_wire(json.loads(json.dumps(status_to_wire(status)))) == status


@settings(max_examples=30)
@given(spec=SPECS, status=STATUSES, version=st.integers(1, 2**60))
def test_what_was_applied_is_what_comes_back(spec: Spec, status: Status, version: int) -> None:
    body = json.loads(json.dumps(node_power_to_apply("n1", "uid-1", version, spec)))
    back = node_power_from_wire({**body, "status": status_to_wire(status)})
    assert (back.name, back.uid, back.resource_version) == ("n1", "uid-1", version)
    assert all(getattr(back.spec, f.name) == getattr(spec, f.name) for f in fields(Spec))
    assert back.status == status
