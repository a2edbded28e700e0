"""The demand contract over real HTTP: schema, metrics, and what a reader makes of both."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from splitwatt_prune.cost import measure
from splitwatt_prune.demand import PREFIX, SCHEMA, Demand, DemandServer, demand_of, metric_names
from splitwatt_prune.models import mlp

PAGE = Path(__file__).resolve().parents[2] / "docs" / "demand.md"


def said(generation: int = 1, **words: int) -> Demand:
    dense, now = (measure(mlp(sizes), torch.zeros(1, 8)) for sizes in ((8, 64, 4), (8, 16, 4)))
    return demand_of(
        now, dense, generation=generation, epoch=10, safe_point=True, shrink_budget=1.5, checkpoint_uri="file:///ckpt/7.pt",
        now=lambda: 1_000.5, **{"workers": 6, "initial_workers": 8, "batch_per_worker": 32, "memory_bytes": 100_000, **words},
    )  # fmt: skip


def got(port: int, path: str) -> tuple[int, str]:
    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.status, answer.read().decode()


def test_both_pages_tell_the_last_demand() -> None:
    with DemandServer(0, "127.0.0.1") as server:
        with pytest.raises(HTTPError, match="503"):
            got(server.port, "/demand")
        for generation in (1, 2):
            server.publish(said(generation))
        status, text = got(server.port, "/demand")
        assert status == 200 and Demand.read(text) == said(2)
        assert json.loads(text)["schema"] == SCHEMA
        families = {family.name: family for family in text_string_to_metric_families(got(server.port, "/metrics")[1])}
        assert {name: families[f"{PREFIX}{name}"].samples[0].value for name in said(2).numbers()} == said(2).numbers()
        assert families.keys() == set(metric_names())
        with pytest.raises(HTTPError, match="404"):
            got(server.port, "/")


def test_the_numbers_follow_from_the_costs() -> None:
    demand = said()
    assert demand.flops_ratio == pytest.approx(0.25) and demand.global_batch == 192
    assert demand.memory_bytes - demand.static_bytes - demand.max_batch_per_gpu * demand.activation_bytes_per_sample >= 0
    assert demand.max_batch_per_gpu == (100_000 - demand.static_bytes) // demand.activation_bytes_per_sample
    assert said(memory_bytes=10).max_batch_per_gpu == 0
    with pytest.raises(ValueError, match="a worker and a sample a step or more, not 0"):
        said(workers=0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "one JSON object"), ("[]", "schema"), ('{"schema": "other/v1"}', "schema"),
     (json.dumps({"schema": SCHEMA, "epoch": 1}), "lacks generation, flops_per_sample")],
)  # fmt: skip
def test_what_is_no_demand_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Demand.read(text)


def test_a_reader_passes_over_keys_of_later_versions() -> None:
    assert Demand.read(json.dumps({**said().as_json(), "later": 1})) == said()


def test_a_port_that_is_taken_is_told() -> None:
    with DemandServer(0, "127.0.0.1") as server, pytest.raises(OSError, match=r"cannot be served.*or 0 for any"):
        DemandServer(server.port, "127.0.0.1")


def test_the_page_names_every_key_and_metric() -> None:
    keys = re.findall(r"^\| `(\w+)`", PAGE.read_text(encoding="utf-8"), flags=re.M)
    assert keys == list(said().as_json())
