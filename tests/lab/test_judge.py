"""The judge knows the wires, gives the operator a raise from the moment of the patch, and does not acquit what it did not see."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_lab.errors import LabError
from splitwatt_lab.judge import Count, Judge, LimitsInForce, complaints
from splitwatt_lab.run import unserved_clusters
from splitwatt_lab.wiring import Declared, Feed, NodeLook, Wiring, declared
from splitwatt_nvml_twin.handle import NodeTwin
from splitwatt_nvml_twin.models import H100_SXM
from splitwatt_nvml_twin.plant import RackPlant

PLANT = RackPlant()
LOOKS = {f"n{k}": NodeLook(1000.0, 2000.0, (250,) * 8) for k in range(4)}
WIRING = Wiring([Feed("row"), Feed("r1", "row", ("n0", "n1")), Feed("r2", "row", ("n2", "n3"))])


def budget(
    name: str, limit_w: int = 10_000, *, parent: str | None = None, selector: Mapping[str, str] | None = None
) -> dict[str, Any]:
    spec: dict[str, Any] = {"limitWatts": limit_w, "limitGraceSeconds": 5}
    spec |= {"parent": parent} if parent else {}
    spec |= {"nodeSelector": {"matchLabels": dict(selector)}} if selector else {}
    return {"metadata": {"name": name}, "spec": spec, "status": {"adoptionMilliseconds": 10}}


def says(name: str, limit_w: int) -> Declared:
    return declared(budget(name, limit_w))


def test_each_node_counts_once_in_its_feed_and_in_all_above() -> None:
    watts = WIRING.watts(LOOKS, {}, PLANT)
    assert watts["row"].capped_w == 4 * 2000.0
    assert watts["r1"].capped_w == 2 * 2000.0
    assert watts["row"].true_w == pytest.approx(watts["r1"].true_w + watts["r2"].true_w)


def test_what_is_declared_counts_above_too() -> None:
    obj = budget("r1")
    obj["spec"] |= {"overheadPercent": 10, "nonGpuWattsPerNode": 100, "fixedWatts": 7}
    watts = WIRING.watts(LOOKS, {"r1": declared(obj)}, PLANT)
    assert watts["r1"].capped_w == pytest.approx(4000 * 1.1 + 200 + 7)
    assert watts["row"].capped_w == pytest.approx(watts["r1"].capped_w + 4000)


@pytest.mark.parametrize(
    ("feeds", "sentence"),
    [
        ([Feed("a", "b"), Feed("b", "a")], "close a circle"),
        ([Feed("a", None, ("n0",)), Feed("b", None, ("n0",))], "a node has one feed"),
        ([Feed("a", "gone")], "hangs on the feed gone"),
        ([Feed("a"), Feed("a")], "wired twice"),
    ],
)
def test_wires_that_cannot_be_are_refused(feeds: list[Feed], sentence: str) -> None:
    with pytest.raises(LabError, match=sentence):
        Wiring(feeds)


# ------------------------------------------------------------------------------------------------------------------ limits


def test_a_raise_holds_from_the_last_reading_on_for_it_may_have_been_patched_right_after_it() -> None:
    limits = LimitsInForce()
    limits.read([says("r1", 1000)], asked_s=10.0, answered_s=10.0)
    limits.read([says("r1", 1500)], asked_s=10.25, answered_s=10.26)
    assert limits.at("r1", 10.01) == (1500, True)


def test_a_lowered_limit_holds_after_its_grace_and_no_sooner() -> None:
    limits = LimitsInForce()
    limits.read([says("r1", 1000)], asked_s=10.0, answered_s=10.0)
    limits.read([says("r1", 600)], asked_s=11.0, answered_s=11.1)
    assert limits.at("r1", 16.0) == (1000, True)
    limits.read([says("r1", 600)], asked_s=16.0, answered_s=16.0)
    assert limits.at("r1", 16.2) == (600, True)


@given(st.lists(st.tuples(st.floats(0.05, 3.0), st.integers(100, 2000)), min_size=1, max_size=12))
def test_no_look_is_judged_by_less_than_the_lowest_limit_of_the_last_grace(changes: list[tuple[float, int]]) -> None:
    limits, at_s, history = LimitsInForce(), 0.0, []
    for gap_s, limit_w in changes:
        at_s += gap_s
        limits.read([says("r1", limit_w)], asked_s=at_s, answered_s=at_s)
        history.append((at_s, limit_w))
        found = limits.at("r1", at_s)
        assert found is not None
        assert found[0] >= limit_w
        long_ago = [w for t, w in history if t <= at_s - 5.0]
        recent = [w for t, w in history if t > at_s - 5.0]
        assert found[0] <= max([*recent, *long_ago[-1:]])


def test_a_budget_counts_once_it_is_adopted() -> None:
    limits = LimitsInForce()
    fresh = budget("r1")
    fresh["status"] = {}
    limits.read([declared(fresh)], asked_s=10.0, answered_s=10.0)
    assert limits.at("r1", 10.1) == (10_000, False)
    assert limits.at("never-seen", 10.1) is None


# --------------------------------------------------------------------------------------------------- mistaken budgets, silence


def judged(tmp_path: Path, budgets: list[dict[str, Any]], *, seconds: float = 0.8) -> Judge:
    """A judge over two racks of one node each, GPUs at 700 W each, that looks for `seconds`."""
    twins = {
        name: NodeTwin.create(tmp_path / f"{name}.state", gpus=[H100_SXM] * 2, boot_id="b", node_name=name)
        for name in ("n0", "n1")
    }
    wires = Wiring([Feed("row"), Feed("r1", "row", ("n0",)), Feed("r2", "row", ("n1",))])
    judge = Judge(twins=twins, wiring=wires, plant=PLANT, budgets=lambda: budgets)
    judge.start()
    time.sleep(seconds)
    judge.stop()
    return judge


GOOD = [budget("row", 30_000), budget("r1", parent="row"), budget("r2", parent="row")]


@pytest.mark.parametrize(
    "mistaken",
    [
        [budget("hall-1", parent="hall-2"), budget("hall-2", parent="hall-1")],
        [budget("hall-1", parent="hall-1")],
        [budget("other", parent="row", selector={"splitwatt.io/rack": "r2"})],
    ],
    ids=["parents in a circle", "its own parent", "two leaves claim a node"],
)
def test_mistaken_budgets_neither_stop_the_judge_nor_count_a_node_twice(tmp_path: Path, mistaken: list[dict[str, Any]]) -> None:
    judge = judged(tmp_path, [*GOOD, *mistaken])
    assert judge.latest["row"].capped_w == 4 * 700
    assert judge.counts["row"].judged_s > 0.4
    assert set(judge.counts) == {"row", "r1", "r2"}
    assert judge.violations_s() == 0


def test_a_circle_among_the_real_budgets_is_judged_by_the_wires(tmp_path: Path) -> None:
    judge = judged(tmp_path, [budget("row", 1000, parent="r1"), budget("r1", parent="row"), budget("r2", parent="row")])
    assert judge.counts["row"].capped_over_s > 0.4


def test_a_deleted_leaf_still_counts_above_and_keeps_its_limit(tmp_path: Path) -> None:
    answers = [[*GOOD[:2], budget("r2", 1000, parent="row")]]
    twins = {
        name: NodeTwin.create(tmp_path / f"{name}.state", gpus=[H100_SXM] * 2, boot_id="b", node_name=name)
        for name in ("n0", "n1")
    }
    wires = Wiring([Feed("row"), Feed("r1", "row", ("n0",)), Feed("r2", "row", ("n1",))])
    judge = Judge(twins=twins, wiring=wires, plant=PLANT, budgets=lambda: answers[-1])
    judge.start()
    answers.append(GOOD[:2])
    time.sleep(0.8)
    judge.stop()
    assert judge.latest["row"].capped_w == 4 * 700
    assert judge.counts["r2"].capped_over_s > 0.4


def test_while_the_api_server_is_away_looks_wait_and_are_judged_in_the_end(tmp_path: Path) -> None:
    away = False

    def fetch() -> list[dict[str, Any]]:
        if away:
            raise LabError("away")
        return GOOD

    twins = {
        name: NodeTwin.create(tmp_path / f"{name}.state", gpus=[H100_SXM] * 2, boot_id="b", node_name=name)
        for name in ("n0", "n1")
    }
    wires = Wiring([Feed("row"), Feed("r1", "row", ("n0",)), Feed("r2", "row", ("n1",))])
    judge = Judge(twins=twins, wiring=wires, plant=PLANT, budgets=fetch)
    judge.start()
    away = True
    time.sleep(0.8)
    assert judge.silent_s < 0.5, "it looks on"
    judge.stop()
    assert judge.counts["row"].judged_s > 0.5


def test_a_judge_whose_thread_ended_says_so_at_once_and_at_the_end(tmp_path: Path) -> None:
    calls = 0

    def fetch() -> list[dict[str, Any]]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ZeroDivisionError("a fault of the judge's own")
        return GOOD

    twins = {"n0": NodeTwin.create(tmp_path / "n0.state", gpus=[H100_SXM], boot_id="b", node_name="n0")}
    judge = Judge(twins=twins, wiring=Wiring([Feed("row", None, ("n0",))]), plant=PLANT, budgets=fetch)
    judge.start()
    time.sleep(0.6)
    with pytest.raises(ZeroDivisionError):
        judge.check()
    with pytest.raises(ZeroDivisionError):
        judge.stop()


def test_a_pass_that_was_not_watched_throughout_is_complained_about() -> None:
    counts = {"row": Count(judged_s=59.0, unseen_s=0.5), "r1": Count(judged_s=22.0), "r2": Count(judged_s=10.0, unseen_s=49.0)}
    found = complaints(counts, ["row", "r1", "r2", "r3"], 60.0)
    assert [line.split(":")[0] for line in found] == ["r1", "r2", "r3"]
    assert "saw 22 s of 60 s" in found[0]


def test_a_cluster_that_never_ran_is_named() -> None:
    wanted = [{"metadata": {"namespace": "serving", "name": "chat"}}, {"metadata": {"namespace": "batch", "name": "summarize"}}]
    row = {"type": "PowerAdmitted", "status": "False", "message": "rack-a2 lacks 9 W"}
    there = [{"metadata": {"namespace": "batch", "name": "summarize"}, "status": {"conditions": [row]}}]
    found = unserved_clusters(wanted, [{"namespace": "serving", "cluster": "chat"}], there)
    assert len(found) == 1
    assert found[0].startswith("batch/summarize never ran")
    assert found[0].endswith("PowerAdmitted=False: rack-a2 lacks 9 W")
