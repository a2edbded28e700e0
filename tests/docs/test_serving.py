"""The page on bringing your own serving names every label that the code knows, and its rules are ones that can be applied."""

from __future__ import annotations

import re
from typing import Any

import yaml
from splitwatt_api import convert
from splitwatt_api.power_budget import PowerBudget
from splitwatt_api.workload_rules import MAX_WORKLOADS
from splitwatt_core.budget import known_labels
from splitwatt_core.budget.known_labels import GROUP_LABELS, MODEL_LABELS, ROLE_LABELS
from splitwatt_operator.cluster.owners import PERIOD_S
from support.stops import REPOSITORY

PAGE = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def test_every_label_that_says_a_phase_or_a_model_is_in_the_table_with_its_values() -> None:
    told = section("Known labels")
    for known in ROLE_LABELS:
        assert f"`{known.key}`" in told and (not known.beside or f"`{known.beside}`" in told)
    assert {value for known in ROLE_LABELS for value in known.phases} == set(
        re.findall(r"`((?:encode|prefill|decode|both)[a-z-]*)`", told)
    )
    assert [key for key in MODEL_LABELS if f"`{key}`" not in told] == []


def test_every_label_of_a_group_is_in_the_table() -> None:
    told = section("One replica over several nodes")
    assert [key for known in GROUP_LABELS for key in known.keys if f"`{key}`" not in told] == []


def test_page_and_code_name_the_same_sources() -> None:
    source = re.compile(r"`((?:pkg|api|deploy|operator|internal)/[\w./-]+\.go)`")
    assert set(source.findall(PAGE)) == set(source.findall(known_labels.__doc__ or "")) != set()


def test_the_example_is_a_budget_and_the_numbers_are_true() -> None:
    found: dict[str, Any] = yaml.safe_load(PAGE.split("```yaml\n")[1].split("```")[0])
    spec = convert.budget_to_core(PowerBudget.from_wire(found))
    assert [(rule.phase, rule.priority) for rule in spec.workloads] == [(None, 100), ("Decode", None), (None, -10)]
    assert f"Roots only, up to {MAX_WORKLOADS}," in PAGE
    assert f"and every {PERIOD_S:.0f} s." in PAGE
