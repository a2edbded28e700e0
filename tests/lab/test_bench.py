"""The benchmarks measure what they say: stand-ins that obey the law, clocks that see caps fall, counts that count writes."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from splitwatt_core.protocol.contract import Grant, NodePower, Spec
from splitwatt_lab import bench, bench_keeper, bench_steps
from splitwatt_lab.bench_figures import FIGURES, GROUP_OF, choose, percentile
from splitwatt_lab.bench_node import StandInNode
from splitwatt_lab.bench_operator import writes
from splitwatt_lab.bench_process import usage
from splitwatt_lab.bench_site import Bench
from splitwatt_lab.errors import LabError
from splitwatt_nvml_twin.handle import NodeTwin
from splitwatt_nvml_twin.models import H100_SXM
from support.some import some
from support.waiting import eventually


class Nobody:
    def stage(self, what: str) -> None:
        pass

    def waiting(self, what: str, done_s: float, total_s: float) -> None:
        pass


# ------------------------------------------------------------------------------------------------------------ figures


def test_the_promised_figures_are_there_with_their_aims() -> None:
    aims = {figure.name: figure.aim for figures in FIGURES.values() for figure in figures}
    promised = {
        "allocator_64_ms": None,
        "allocator_1000_ms": 20,
        "allocator_80000_ms": 500,
        "agent_core_percent": 1,
        "agent_rss_mib": 80,
        "operator_rss_mib": 200,
        "api_writes_per_node_per_s": 0.1,
        "patch_to_enforced_p50_s": None,
        "patch_to_enforced_p99_s": None,
    }
    assert {name: aims[name] for name in promised} == promised
    assert set(FIGURES) == set(bench.MEASUREMENTS)
    assert len(GROUP_OF) == sum(map(len, FIGURES.values())), "a figure of two measurements"


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(v) for v in range(30, 0, -1)]
    assert percentile(values, 0.5) == 15
    assert percentile(values, 0.99) == 30, "of thirty the slowest"
    assert percentile([7.0], 0.5) == percentile([7.0], 1.0) == 7
    with pytest.raises(ValueError, match="needs values"):
        percentile([], 0.5)


def test_figures_choose_the_measurements_that_give_them() -> None:
    assert list(choose([])) == list(FIGURES)
    assert list(choose(["patch_to_enforced_p99_s", "agent_rss_mib", "agent"])) == ["agent", "patch"]
    with pytest.raises(ValueError, match=r"no figure 'agent_rss_mb'; choose of allocator, .*agent_rss_mib"):
        choose(["agent_rss_mb"])


def run(out: Path, *arguments: str, **measured: Callable[[Bench], dict[str, float]]) -> tuple[int, str, dict[str, float]]:
    """Exit code, what the terminal shows, and the file."""
    parser = argparse.ArgumentParser()
    bench.COMMAND.add_arguments(parser)
    shown = io.StringIO()
    args = parser.parse_args([f"--out={out}", *arguments])
    code = bench.run_bench(args, Console(file=shown, width=200), {**bench.MEASUREMENTS, **measured})
    return code, shown.getvalue(), json.loads((out / "bench.json").read_text())


def test_a_figure_above_its_aim_is_shown_as_such_and_is_no_failure(tmp_path: Path) -> None:
    code, shown, file = run(tmp_path, "--only=agent", agent=lambda _: {"agent_core_percent": 3.5, "agent_rss_mib": 80.0})
    assert code == 0
    rows = {line.split("│")[1].strip(): line for line in shown.splitlines() if line.startswith("│")}
    assert "≤ 1" in rows["agent_core_percent"] and " no " in rows["agent_core_percent"]
    assert "≤ 80" in rows["agent_rss_mib"] and " yes " in rows["agent_rss_mib"]
    assert file["agent_core_percent"] == 3.5
    assert all(isinstance(value, int | float) for value in file.values())


def test_what_cannot_be_measured_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: Bench) -> dict[str, float]:
        raise LabError("the operator ended with code 1")

    code, shown, file = run(
        tmp_path, "--only=agent,patch_to_enforced_p50_s", agent=broken, patch=lambda b: {"patch_to_enforced_p50_s": b.steps}
    )
    assert code == bench.FAILED
    assert "agent was not measured: the operator ended with code 1" in shown
    assert "agent was not measured" in capsys.readouterr().err
    assert file["patch_to_enforced_p50_s"] == bench.STEPS
    assert "agent_core_percent" not in file


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--steps=0", "must be a whole number from 1 to 1000, not '0'"),
        ("--steps=many", "must be a whole number from 1 to 1000, not 'many'"),
        ("--only=agent,speed", "there is no figure 'speed'; choose of allocator, agent"),
    ],
)
def test_bad_input_gets_its_sentence(argument: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    bench.COMMAND.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([argument])
    assert sentence in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ stand-ins


def granted(node: StandInNode, cap_w: int, *, grant: int, for_uid: str = "uid-1", version: int = 1) -> NodePower:
    grants = tuple(Grant(uuid, grant, cap_w, cap_w, max(cap_w, 700)) for uuid in node.limit_mw)
    return NodePower(node.name, "uid-1", version, Spec(term=1, for_uid=for_uid, gpus=grants))


def test_a_stand_in_sets_and_acknowledges_what_it_is_granted() -> None:
    node = StandInNode("n1", "boot-1")
    assert {line.acked_grant for line in node.lines()} == {0}
    node.see(granted(node, 350, grant=5), 1.0, consistent=True)
    assert set(node.limit_mw.values()) == {350_000}
    status = node.status(said_at="2026-01-01T00:00:00Z")
    assert (status.observed_uid, status.observed_term, status.boot_id) == ("uid-1", 1, "boot-1")
    assert {(line.acked_grant, line.management_w, line.enforced_w) for line in status.gpus} == {(5, 350, 350)}


def test_a_stand_in_refuses_what_an_agent_would() -> None:
    node = StandInNode("n1", "boot-1")
    node.see(granted(node, 350, grant=5), 1.0, consistent=False)
    assert set(node.limit_mw.values()) == {700_000}, "nothing counts before a consistent read"
    node.see(granted(node, 350, grant=5, for_uid="uid-0"), 1.0, consistent=True)
    assert set(node.limit_mw.values()) == {700_000}, "written for another object"
    node.see(granted(node, 350, grant=5, version=3), 1.0, consistent=True)
    node.see(granted(node, 600, grant=4, version=4), 2.0, consistent=True)
    node.see(granted(node, 600, grant=6, version=2), 3.0, consistent=True)
    assert set(node.limit_mw.values()) == {350_000}, "a lower grant, an older version"


def test_a_stand_in_draws_no_more_than_its_limits() -> None:
    node = StandInNode("n1", "boot-1")
    free_w = [max(node.draw_w(t).values()) for t in range(0, 120, 5)]
    assert max(free_w) > 600 and min(node.draw_w(0.0).values()) >= H100_SXM.idle_w
    node.see(granted(node, 250, grant=5), 1.0, consistent=True)
    assert max(max(node.draw_w(t).values()) for t in range(0, 120, 5)) == 250


def test_a_keeper_and_its_stand_ins_come_to_rest_and_follow_a_cut() -> None:
    made = bench_keeper.world(gpus=96)
    assert made.keeper.books[bench_keeper.ROOT].adopted
    before = {name: dict(node.limit_mw) for name, node in made.nodes.items()}
    made.keeper.on_budget(bench_keeper.root(len(made.nodes), ratio=0.9, generation=2), made.now_s)
    plan, took_ms = made.step()
    assert len(plan.writes) == len(made.nodes) and took_ms > 0
    for name, node in some(made.nodes.items()):
        assert all(now_mw < before[name][uuid] for uuid, now_mw in some(node.limit_mw.items()))


def test_a_keeper_that_never_rests_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench_keeper.world(gpus=16)
    restless = replace(made.keeper.step(made.now_s), create=("n0",))
    monkeypatch.setattr(made.keeper, "step", lambda _: restless)
    with pytest.raises(LabError, match="still writes after"):
        bench_keeper.settle(made)


# --------------------------------------------------------------------------------------------------------------- clocks


def test_the_watch_sees_when_a_cap_last_fell(tmp_path: Path) -> None:
    with NodeTwin.create(tmp_path / "n1", gpus=[H100_SXM] * 2, boot_id="b", node_name="n1") as twin:
        watch = bench_steps.CapWatch([twin])
        watch.start()
        try:
            fell_s = time.time()
            twin.set_outside_limit(1, 300_000)
            eventually("the cap is seen", lambda: watch.enforced_mw == [700_000, 300_000])
            assert watch.fell_s >= fell_s
            seen_s = watch.fell_s
            twin.set_outside_limit(1, None)
            eventually("and that it is gone", lambda: watch.enforced_mw == [700_000, 700_000])
            assert watch.fell_s == seen_s < watch.moved_s, "a rise is no fall"
        finally:
            watch.stop()
        assert watch.gaps_s and min(watch.gaps_s) >= bench_steps.LOOK_S / 2


def test_steps_become_figures() -> None:
    steps = [bench_steps.LimitStep(kubectl_s=0.1, enforced_s=0.2 + k / 100) for k in range(30)]
    figures = bench_steps.figures(steps, [0.02] * 99 + [0.5])
    assert figures == {
        "patch_to_enforced_p50_s": 0.34,
        "patch_to_enforced_p99_s": 0.49,
        "kubectl_patch_p50_s": 0.1,
        "accepted_to_enforced_p50_s": 0.24,
        "look_gap_p99_s": 0.02,
    }


def test_usage_tells_a_busy_process_from_an_idle_one() -> None:
    work = {"busy": "while True: pass", "idle": "import time; time.sleep(600)"}
    spent = {}
    for name, code in work.items():
        with subprocess.Popen([sys.executable, "-c", code]) as child:
            try:
                time.sleep(0.5)
                spent[name] = usage(child.pid, seconds=1.0, what=name, progress=Nobody())
            finally:
                child.kill()
    assert spent["busy"].core_percent > spent["idle"].core_percent + 3, "even on a very busy machine"
    assert spent["idle"].core_percent < 3
    assert 2 < spent["idle"].rss_mib <= spent["idle"].highest_rss_mib < 200


def test_a_process_that_ends_is_no_figure() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
        with pytest.raises(LabError, match="ended while it was measured"):
            usage(child.pid, seconds=5.0, what="agent", progress=Nobody())


# --------------------------------------------------------------------------------------------------------------- counts

COUNTERS = """\
# TYPE apiserver_request_total counter
apiserver_request_total{code="200",dry_run="",resource="nodepowers",scope="resource",subresource="",verb="APPLY"} 40
apiserver_request_total{code="409",dry_run="",resource="nodepowers",scope="resource",subresource="status",verb="APPLY"} 2
apiserver_request_total{code="201",dry_run="",resource="nodepowers",scope="resource",subresource="",verb="POST"} 5
apiserver_request_total{code="200",dry_run="",resource="nodepowers",scope="cluster",subresource="",verb="LIST"} 700
apiserver_request_total{code="200",dry_run="",resource="nodepowers",scope="cluster",subresource="",verb="WATCH"} 9
apiserver_request_total{code="200",dry_run="",resource="nodes",scope="resource",subresource="status",verb="PATCH"} 1e+06
apiserver_request_total{code="200",dry_run="",resource="powerbudgets",scope="cluster",subresource="",verb="LIST"} 3
"""


def test_writes_are_counted_whatever_became_of_them_and_reads_are_not() -> None:
    assert writes(COUNTERS.splitlines(), "nodepowers") == 47


def test_a_count_that_is_not_there_is_not_zero() -> None:
    with pytest.raises(LabError, match="has no write of powerbudgets"):
        writes(COUNTERS.splitlines(), "powerbudgets")
