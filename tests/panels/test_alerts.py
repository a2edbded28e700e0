"""Each alert fires when it should, says its numbers, stays quiet just below, and clears: by promtool, with Prometheus' engine."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from splitwatt_lab import prometheus
from splitwatt_panels.alerts import ALERTS
from splitwatt_panels.generate import ROOT, RULES
from splitwatt_panels.model import Alert

STEP_S = 10
UNKNOWN = " ".join(["NaN"] * 30)


@dataclass(frozen=True)
class Case:
    """Series in promtool's words, ten seconds a step: some bad from the start and good later, others as near to bad as may be.
    The alert fires at `bad_s` for `labels` alone, with `summary`, is not yet there a step before its time, and gone at
    `clear_s`."""

    series: Mapping[str, str]
    labels: Mapping[str, str]
    summary: str
    bad_s: int
    clear_s: int


def budget(name: str = "rack-a1") -> dict[str, str]:
    return {"budget": name}


CHAT = {"namespace": "serving", "cluster": "chat"}
PROMPTS = 'vllm:prompt_tokens_by_source_total{namespace="serving", cluster="chat"'


def histogram(metric: str, role: str, *, slow_steps: int, quick_steps: int) -> dict[str, str]:
    """Ten requests a step: first each between one and two seconds long, then each below half a second."""
    where = f'namespace="serving", cluster="chat", role="{role}"'
    quick = f"0+0x{slow_steps} 10+10x{quick_steps}"
    all_of_them = f"0+10x{slow_steps + quick_steps + 1}"
    return {
        f'{metric}_bucket{{{where}, le="0.5"}}': quick,
        f'{metric}_bucket{{{where}, le="1"}}': quick,
        f'{metric}_bucket{{{where}, le="2"}}': all_of_them,
        f'{metric}_bucket{{{where}, le="+Inf"}}': all_of_them,
    }


CASES: dict[str, Case] = {
    "BudgetAboveLimit": Case(
        {
            'splitwatt_budget_limit_in_force_watts{budget="rack-a1"}': "26000x60",
            'splitwatt_budget_measured_watts{budget="rack-a1"}': "26400x9 25900x50",
            'splitwatt_budget_limit_in_force_watts{budget="rack-a2"}': "26000x60",
            'splitwatt_budget_measured_watts{budget="rack-a2"}': "26000x60",
            'splitwatt_budget_limit_in_force_watts{budget="rack-a3"}': "26000x60",
            'splitwatt_budget_measured_watts{budget="rack-a3"}': UNKNOWN,
        },
        budget(),
        "rack-a1 draws 26.4kW, more than its limit in force, 26kW",
        20,
        120,
    ),
    "BudgetBrakes": Case(
        {
            'splitwatt_budget_limit_in_force_watts{budget="rack-a1"}': "26000x60",
            'splitwatt_budget_charge_watts{budget="rack-a1"}': "25000x60",
            'splitwatt_budget_posture{budget="rack-a1"}': "4x9 3x50",
            'splitwatt_budget_charge_watts{budget="rack-a2"}': "25000x60",
            'splitwatt_budget_posture{budget="rack-a2"}': "3x60",
        },
        budget(),
        "rack-a1 has braked for half a minute: charged 25kW, limit in force 26kW",
        40,
        120,
    ),
    "LimitInfeasible": Case(
        {
            'splitwatt_budget_limit_in_force_watts{budget="rack-a1"}': "8000x60",
            'splitwatt_budget_short_watts{budget="rack-a1"}': "412x9 0x50",
            'splitwatt_budget_short_watts{budget="rack-a2"}': "0x60",
        },
        budget(),
        "rack-a1 lacks 412W with every GPU at its lowest cap; limit in force 8kW",
        70,
        120,
    ),
    "CapNotObeyed": Case(
        {
            'splitwatt_gpu_enforced_cap_watts{node="a1-n1", gpu="GPU-0", role="Decode"}': "700x9 400x50",
            'splitwatt_gpu_granted_cap_watts{node="a1-n1", gpu="GPU-0", role="Decode"}': "400x60",
            'splitwatt_gpu_enforced_cap_watts{node="a1-n1", gpu="GPU-1", role="Decode"}': "401x60",
            'splitwatt_gpu_granted_cap_watts{node="a1-n1", gpu="GPU-1", role="Decode"}': "400x60",
        },
        {"node": "a1-n1", "gpu": "GPU-0"},
        "GPU-0 on a1-n1 has an enforced limit 300W above its cap",
        40,
        120,
    ),
    "NobodyReigns": Case(
        {
            'splitwatt_operator_active{instance="a"}': "0x9 1x50",
            'splitwatt_operator_active{instance="b"}': "0x60",
        },
        {},
        "0 replicas of the Splitwatt operator hold the Lease",
        70,
        120,
    ),
    "TtftMissed": Case(
        {
            'splitwatt_cluster_slo_seconds{namespace="serving", cluster="chat", latency="TTFT"}': "0.6x200",
            **histogram("vllm:time_to_first_token_seconds", "prefill", slow_steps=60, quick_steps=100),
        },
        CHAT | {"role": "prefill"},
        "serving/chat: TTFT P99 at prefill is 1.99s, promised are 600ms",
        420,
        1100,
    ),
    "TbtMissed": Case(
        {
            'splitwatt_cluster_slo_seconds{namespace="serving", cluster="chat", latency="TBT"}': "0.6x200",
            **histogram("vllm:inter_token_latency_seconds", "decode", slow_steps=60, quick_steps=100),
        },
        CHAT | {"role": "decode"},
        "serving/chat: TBT P99 at decode is 1.99s, promised are 600ms",
        420,
        1100,
    ),
    "MarginSmall": Case(
        {
            'splitwatt_budget_limit_in_force_watts{budget="rack-a1"}': "20000x120",
            'splitwatt_budget_measured_watts{budget="rack-a1"}': "19800x70 19000x50",
            'splitwatt_budget_limit_in_force_watts{budget="rack-a2"}': "20000x120",
            'splitwatt_budget_measured_watts{budget="rack-a2"}': "19600x120",
        },
        budget(),
        "rack-a1 has drawn 99% of its limit in force, 20kW, for ten minutes",
        620,
        730,
    ),
    "MeterNotBelieved": Case(
        {
            'splitwatt_budget_limit_in_force_watts{budget="rack-a1"}': "26000x60",
            'splitwatt_budget_telemetry_fresh{budget="rack-a1"}': "0x9 1x50",
            'splitwatt_budget_limit_in_force_watts{budget="rack-a2"}': "26000x60",
            'splitwatt_budget_telemetry_fresh{budget="rack-a2"}': "1x60",
        },
        budget(),
        "Nobody can tell what rack-a1 draws; its limit in force is 26kW",
        70,
        120,
    ),
    "CapsNotEnforced": Case(
        {
            'splitwatt_budget_gpus{budget="rack-a1"}': "16x60",
            'splitwatt_budget_condition{budget="rack-a1", condition="CapsEnforced"}': "0x15 1x45",
            'splitwatt_budget_gpus{budget="rack-a2"}': "16x60",
            'splitwatt_budget_condition{budget="rack-a2", condition="CapsEnforced"}': UNKNOWN,
            'splitwatt_budget_condition{budget="rack-a2", condition="Ready"}': "0x60",
        },
        budget(),
        "rack-a1: not every cap of its 16 GPUs was read back",
        130,
        180,
    ),
    "GrantsLate": Case(
        {
            'splitwatt_gpu_unacknowledged_seconds{node="a1-n1", gpu="GPU-0"}': "0+10x9 0x50",
            'splitwatt_gpu_unacknowledged_seconds{node="a1-n1", gpu="GPU-1"}': "0x60",
            'splitwatt_gpu_unacknowledged_seconds{node="a1-n2", gpu="GPU-0"}': "10x60",
        },
        {"node": "a1-n1"},
        "A grant to a1-n1 has waited 1m 0s to be read back",
        60,
        120,
    ),
    "ForeignLimit": Case(
        {
            'splitwatt_agent_condition{node="a1-n1", condition="ForeignLimit"}': "1x9 stale",
            'splitwatt_agent_condition{node="a1-n2", condition="CapsEnforced"}': "1x60",
        },
        {"node": "a1-n1"},
        "Somebody else sets power limits on a1-n1 (1 agent says so)",
        70,
        120,
    ),
    "PodsGated": Case(
        {
            'splitwatt_cluster_pods{namespace="serving", cluster="chat", role="decode", state="Wanted"}': "4x120",
            'splitwatt_cluster_pods{namespace="serving", cluster="chat", role="decode", state="Admitted"}': "1x70 4x50",
            'splitwatt_cluster_pods{namespace="serving", cluster="chat", role="prefill", state="Wanted"}': "2x120",
            'splitwatt_cluster_pods{namespace="serving", cluster="chat", role="prefill", state="Admitted"}': "2x120",
        },
        {**CHAT, "role": "decode"},
        "3 decode pods of serving/chat have waited at the power gate for ten minutes",
        620,
        730,
    ),
    "DecodeComputesPrompts": Case(
        {
            f'{PROMPTS}, role="decode", source="local_compute"}}': "0+90x60 5400x100",
            f'{PROMPTS}, role="decode", source="external_kv_transfer"}}': "0+30x60 1800+120x100",
            f'{PROMPTS}, role="prefill", source="local_compute"}}': "0+900x160",
        },
        CHAT,
        "Decode engines of serving/chat compute 75% of their prompt tokens themselves",
        400,
        1000,
    ),
    "WritesRefused": Case(
        {
            'splitwatt_api_refusals_total{kind="NodePower", code="403"}': "0+10x40 400x100",
            'splitwatt_api_refusals_total{kind="NodePower", code="409"}': "0+100x140",
        },
        {"kind": "NodePower", "code": "403"},
        "The API server refuses 60 writes of NodePower a minute with HTTP 403",
        390,
        1000,
    ),
}  # fmt: skip


def expected(alert: Alert, case: Case) -> dict[str, Any]:
    description = alert.description
    for label, value in case.labels.items():
        description = description.replace(f"{{{{ $labels.{label} }}}}", value)
    return {
        "exp_labels": {**case.labels, "severity": alert.severity.value},
        "exp_annotations": {"summary": case.summary, "description": description, "runbook_url": alert.runbook},
    }


def test_no_alert_is_without_its_case() -> None:
    assert CASES.keys() == {alert.key for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=[alert.name for alert in ALERTS])
def test_an_alert_fires_with_its_numbers_and_clears(alert: Alert, tmp_path: Path) -> None:
    case = CASES[alert.key]
    looks = [(alert.for_s - STEP_S, []), (case.bad_s, [expected(alert, case)]), (case.clear_s, [])]
    test = {
        "interval": f"{STEP_S}s",
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "alert_rule_test": [
            {"eval_time": f"{at_s}s", "alertname": alert.name, "exp_alerts": alerts} for at_s, alerts in looks
        ],
    }  # fmt: skip
    cases = tmp_path / "cases.yaml"
    cases.write_text(yaml.safe_dump({"rule_files": [str(ROOT / RULES)], "evaluation_interval": f"{STEP_S}s", "tests": [test]}))
    promtool = prometheus.program().with_name("promtool")
    result = subprocess.run([promtool, "test", "rules", cases], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
