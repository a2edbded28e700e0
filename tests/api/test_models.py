"""The models as such: what they refuse without an API server, and what survives a way through them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from splitwatt_api.inference_cluster import InferenceCluster
from splitwatt_api.kinds import KINDS
from splitwatt_api.power_budget import PowerBudget
from splitwatt_api.promql import is_plain_selector

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODELS = {kind.name: kind.model for kind in KINDS}


def budget(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "rack"}, "spec": {"limitWatts": 26_000, **spec}}


def test_a_typo_in_a_file_is_named() -> None:
    with pytest.raises(ValidationError, match="limitWats"):
        PowerBudget.from_wire(budget(limitWats=1))


def test_a_newer_servers_object_is_read_all_the_same() -> None:
    read = PowerBudget.from_wire(budget(meter={"selector": "rack_power_watts", "fromTheFuture": 1}), lenient=True)
    assert read.spec.meter is not None
    assert read.spec.meter.max_age_seconds == 5


@pytest.mark.parametrize("watts", [0, -5, 26_000.5, "26000", True, 10**12])
def test_watts_are_whole_positive_and_sane(watts: object) -> None:
    with pytest.raises(ValidationError, match="limitWatts"):
        PowerBudget.from_wire(budget(limitWatts=watts))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_valid_without_an_unknown_field(path: Path) -> None:
    ours = [doc for doc in yaml.safe_load_all(path.read_text()) if doc["apiVersion"].startswith("splitwatt.io/")]
    assert ours
    for document in ours:
        MODELS[document["kind"]].model_validate(document)


def test_a_split_service_takes_fewer_than_thirty_lines() -> None:
    text = (EXAMPLES / "chat.yaml").read_text()
    cluster = next(part for part in text.split("---\n") if "InferenceCluster" in part)
    assert len(cluster.splitlines()) < 30


def test_what_a_template_removes_with_null_survives() -> None:
    overlay = {"spec": {"terminationGracePeriodSeconds": None, "tolerations": [{"operator": "Exists"}]}}
    pool = {"replicas": 1, "template": overlay}
    cluster = InferenceCluster.from_wire(
        {
            "metadata": {"name": "c", "namespace": "n"},
            "spec": {"model": {"name": "m"}, "engine": {"type": "VLLM"}, "prefill": pool, "decode": pool},
        }
    )
    assert cluster.spec.decode is not None and cluster.spec.decode.template is not None
    assert cluster.spec.decode.template.to_wire()["spec"] == overlay["spec"]


@pytest.mark.parametrize(
    "selector",
    [
        "rack_power_watts",
        'rack_power_watts{rack="a1"}',
        "rack_power_watts{rack='a1',site!=\"x\"}",
        'pdu:power{outlet=~"1|2", rack!~"b.*",}',
        r'p{name="quote \" and brace }"}',
        ' spaced { rack = "a1" } ',
        "empty{}",
    ],
)
def test_plain_selectors_are_taken(selector: str) -> None:
    assert is_plain_selector(selector)


@pytest.mark.parametrize(
    "selector",
    [
        "sum(rack_power_watts)",
        "rack_power_watts[5m]",
        "rack_power_watts offset 5m",
        "rack_power_watts @ 1",
        "avg_over_time(rack_power_watts[1m])",
        "a + b",
        "-rack_power_watts",
        "42",
        '{rack="a1"}',
        'rack_power_watts{rack="a1"',
        "rack_power_watts{rack=a1}",
        'rack_power_watts{rack=="a1"}',
        "rack_power_watts{,}",
        "",
    ],
)
def test_everything_else_is_not(selector: str) -> None:
    assert not is_plain_selector(selector)
    with pytest.raises(ValidationError, match="selector"):
        PowerBudget.from_wire(budget(meter={"selector": selector}))


def test_a_long_hostile_selector_is_judged_quickly() -> None:
    assert not is_plain_selector("a{" + 'b="c",' * 160 + "!")
