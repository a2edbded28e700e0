"""One GPU's account under any order of grants, acknowledgements, readings and time: never below what may be drawn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.protocol.contract import GpuStatus, Grant, NodePower, Status
from splitwatt_core.protocol.ledger import GpuAccount
from splitwatt_core.protocol.node_account import NodeAccount

DEFAULT_W, SETTLE_S = 700, 0.5
WATTS = st.integers(200, 700)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("grant"), WATTS),
        st.tuples(st.just("acknowledge"), st.integers(0, 5)),
        st.tuples(st.just("reads"), WATTS),
        st.tuples(st.just("time"), st.sampled_from([0.1, 0.4, 0.6])),
        st.tuples(st.just("trust"), st.booleans()),
    ),
    max_size=120,
)


@given(events=EVENTS)
def test_a_charge_covers_every_grant_that_may_be_in_force_now_or_was_a_settle_time_ago(
    events: list[tuple[str, float]],
) -> None:
    account = GpuAccount("g0", DEFAULT_W, 200, 700, reported_w=DEFAULT_W)
    now_s, trusted = 0.0, True
    sent: list[int] = []
    bounds: list[tuple[float, float]] = []
    for kind, value in events:
        if kind == "grant":
            cap_w = int(value)
            number = len(sent) + 1
            account.learn(Grant("g0", number, cap_w, cap_w, max(account.charge_w, cap_w)))
            sent.append(cap_w)
        elif kind == "acknowledge":
            account.acknowledge(min(len(sent), max(account.acked, len(sent) - int(value))) if value else 0)
        elif kind == "reads":
            account.reported_w = int(value)
        elif kind == "trust":
            trusted = bool(value)
        else:
            now_s += value
        account.refresh(now_s, trusted=trusted, settle_s=SETTLE_S)
        may_draw_w = max([account.reported_w or 0, *sent[max(account.acked - 1, 0) :]])
        if account.acked == 0 or not trusted:
            may_draw_w = max(may_draw_w if account.acked else account.reported_w or 0, DEFAULT_W)
        assert account.charge_w >= may_draw_w
        bounds.append((now_s, account.raw_w))
        lately = [w for at, w in bounds if now_s - at < SETTLE_S]
        assert account.charge_w >= max(lately), "fell before the draw did"


@given(events=EVENTS)
def test_once_the_newest_grant_is_acknowledged_and_settled_nothing_else_is_charged(
    events: list[tuple[str, float]],
) -> None:
    account = GpuAccount("g0", DEFAULT_W, 200, 700)
    number = 0
    for kind, value in events:
        if kind == "grant":
            number += 1
            account.learn(Grant("g0", number, int(value), int(value), 700))
    account.learn(Grant("g0", number + 1, 300, 300, 700))
    account.reported_w = 300
    account.acknowledge(number + 1)
    account.refresh(0.0, trusted=True, settle_s=SETTLE_S)
    account.refresh(SETTLE_S, trusted=True, settle_s=SETTLE_S)
    assert account.charge_w == 300 and not account.settling


TOLD_W = st.sampled_from([0, 1, 100, 200, 700, 701, 1000, 10_000])
ROWS = st.lists(
    st.builds(
        GpuStatus,
        uuid=st.sampled_from(["g0", "g1", "g2"]),
        acked_grant=st.integers(0, 3),
        management_w=st.none() | TOLD_W,
        enforced_w=st.none() | TOLD_W,
        min_w=TOLD_W,
        max_w=TOLD_W,
        default_w=TOLD_W,
        floor_w=TOLD_W,
    ),
    max_size=5,
)


@given(statuses=st.lists(st.tuples(ROWS, st.sampled_from(["uid", "other", ""])), min_size=1, max_size=6))
def test_whatever_an_agent_tells_the_lowest_cap_of_a_gpu_is_never_above_its_charge(
    statuses: list[tuple[list[GpuStatus], str]],
) -> None:
    """Else a first grant, at the lowest cap, would lift the sum that it is to keep."""
    node = NodeAccount("n1", present=True, boot_id="b")
    for version, (rows, observed) in enumerate(statuses, 1):
        told = Status(observed_uid=observed, boot_id="b", gpus=tuple(rows))
        node.observe(NodePower("n1", "uid", version, status=told), float(version), term=1)
        node.refresh(float(version), settle_s=SETTLE_S)
        for gpu in node.gpus.values():
            assert gpu.charge_w >= max(gpu.min_w, gpu.floor_w), gpu
