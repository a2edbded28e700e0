"""docs/cli.md names every command, every code of `explain` and every field of the JSON that is promised."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from splitwatt_cli.explain.explained import explain_node
from splitwatt_cli.status.standing import standing_of
from splitwatt_cli.top.view import Samples, moment_of
from support.cli_objects import healthy
from support.commands import OURS

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OURS)
def test_every_command_has_its_section(name: str) -> None:
    assert f"\n## {name}\n" in PAGE


def test_every_code_of_a_cap_is_explained() -> None:
    source = (REPOSITORY / "cli" / "splitwatt_cli" / "explain" / "why.py").read_text(encoding="utf-8")
    codes = set(re.findall(r'Why\(\s*"(\w+)"', source))
    assert len(codes) > 12 and {code for code in codes if f"`{code}`" not in PAGE} == set()


def test_every_field_of_the_shapes_is_named() -> None:
    node = explain_node(healthy(), "n1")
    assert node is not None
    status, top = standing_of(healthy()).wire(), moment_of(healthy(), Samples()).wire()
    rows = [*(status[key][0] for key in ("budgets", "nodes", "clusters")), top["budgets"][0], top["roles"][0], status["operator"]]
    fields = {*status, *top, *node.wire(), *(key for row in rows for key in row)}
    assert len(fields) > 30 and {field for field in fields if f"`{field}`" not in PAGE} == set()
