"""docs/conditions.md has every reason that the code gives, and none besides."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "conditions.md"
SOURCES = (
    *(ROOT / "core/splitwatt_core/budget/reporting").glob("*.py"),
    *(ROOT / f"core/splitwatt_core/admission/{name}.py" for name in ("shortage", "plan", "foreign")),
    ROOT / "core/splitwatt_core/serving/kv_proof.py",
    ROOT / "core/splitwatt_core/serving/provable.py",
    ROOT / "core/splitwatt_core/serving/rollout.py",
    *(ROOT / f"core/splitwatt_core/budget/{name}.py" for name in ("books", "modes", "observing", "releasing")),
    ROOT / "core/splitwatt_core/budget/heard.py",
    ROOT / "core/splitwatt_core/budget/roster.py",
    ROOT / "operator/splitwatt_operator/serving/status.py",
    ROOT / "operator/splitwatt_operator/serving/memory.py",
    ROOT / "operator/splitwatt_operator/serving/admission.py",
    ROOT / "operator/splitwatt_operator/serving/loop.py",
    ROOT / "operator/splitwatt_operator/serving/prober.py",
    ROOT / "operator/splitwatt_operator/budgets/statuses.py",
    ROOT / "operator/splitwatt_operator/budgets/feeder.py",
    ROOT / "agents/splitwatt_agent/conditions.py",
)
CAMEL = re.compile(r"[A-Z][a-z0-9]+(?:[A-Z]+[a-z0-9]*)*|NVMLUnavailable|GPULost|NoSLO")
SPEAKERS = {"Condition", "AdmissionVerdict", "Note", "no", "_complain", "_say_of_node", "Happening", "Entry"}
"""Who is given a reason as an argument. Their first may be a type of condition or an object's kind."""
TYPES = {
    "Ready",
    "MemoryExpanded",
    "WithinBudget",
    "CapsEnforced",
    "TelemetryFresh",
    "Feasible",
    "OwnersKnown",
    "Steered",
    "Paused",
    "Observing",
    "ForeignLimit",
    "LeaseHeld",
    "RouterReady",
    "KVTransferVerified",
    "PowerAdmitted",
    "SLOAttained",
    "RollingOut",
    "ScaledElsewhere",
    "EngineChecked",
    "PowerBudget",
    "Node",
    "Pod",
    "InferenceCluster",
}


def texts(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and CAMEL.fullmatch(each.value):
            yield each.value


def said(tree: ast.AST) -> set[str]:
    """Words in CamelCase that stand where reasons are given: to a speaker, in a tuple (reason, sentence), in KvReason, or in
    what is called `reason`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in SPEAKERS:
                flat = [a for a in (*node.args, *(k.value for k in node.keywords)) if isinstance(a, ast.Constant | ast.IfExp)]
                found.update(text for argument in flat for text in texts(argument))
        elif isinstance(node, ast.Tuple) and len(node.elts) in (2, 3):
            first = node.elts[0]
            if isinstance(first, ast.Constant | ast.IfExp):
                found.update(texts(first))
        elif isinstance(node, ast.ClassDef) and node.name == "KvReason":
            found.update(texts(node))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "reason":
            found.update(texts(node.value))
        elif isinstance(node, ast.FunctionDef) and node.name == "reason":
            found.update(texts(node))
    return found


def given() -> set[str]:
    return {reason for file in SOURCES for reason in said(ast.parse(file.read_text(encoding="utf-8")))}


def rows() -> Iterator[list[str]]:
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def explained() -> set[str]:
    return {word for row in rows() for cell in row[:2] for word in re.findall(r"`(\w+)`", cell) if CAMEL.fullmatch(word)}


def test_every_reason_is_explained_and_none_is_made_up() -> None:
    reasons = given()
    assert len(reasons) > 90, "the search finds what it looks for"
    everything = "".join(file.read_text(encoding="utf-8") for file in SOURCES)
    assert reasons - TYPES - explained() == set(), "say in docs/conditions.md what these mean"
    made_up = {reason for reason in explained() - TYPES if f'"{reason}"' not in everything}
    assert made_up == set()


def test_each_row_says_what_to_do_and_whose_it_is() -> None:
    for row in rows():
        assert all(row), row
        assert len(row) in (3, 4, 5), row


@pytest.mark.parametrize(
    "snippet", ['Condition("Ready", False, "NewThing", "x")', 'rows.append(("NewThing", "x"))', 'reason = "NewThing"']
)
def test_a_new_reason_would_be_found(snippet: str) -> None:
    assert "NewThing" in said(ast.parse(snippet))
