"""The law of conditions: since when is told truly, and nothing grows beyond what the API server takes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.conditions import (
    MAX_CONDITIONS,
    MAX_MESSAGE_CHARS,
    MAX_REASON_CHARS,
    Condition,
    ConditionChange,
    change_of,
    condition_from_wire,
    condition_to_wire,
    merge,
)

EARLIER, NOW = "2030-01-01T00:00:00Z", "2030-01-01T00:01:00Z"
KINDS = st.sampled_from(["Ready", "Feasible", "CapsEnforced", "WithinBudget"])
TEXTS = st.text(max_size=12)
STATUSES = st.none() | st.booleans()
GENERATIONS = st.none() | st.integers(0, 9)
SAID = st.lists(st.builds(Condition, KINDS, STATUSES, TEXTS, TEXTS), max_size=5)
STANDING = st.lists(st.builds(Condition, KINDS, STATUSES, TEXTS, TEXTS, st.sampled_from(["", EARLIER]), GENERATIONS), max_size=5)


def condition(**changed: object) -> Condition:
    return replace(Condition("Ready", True, "Holding", "limit 26000 W is kept", EARLIER, 3), **changed)  # type: ignore[arg-type]


@given(new=SAID, previous=STANDING, generation=GENERATIONS, keep_others=st.booleans())
def test_what_is_said_now_is_said_and_since_when_is_true(
    new: list[Condition], previous: list[Condition], generation: int | None, keep_others: bool
) -> None:
    said, stood = {c.type: c for c in new}, {c.type: c for c in previous}
    merged = merge(new, previous, now=NOW, generation=generation, keep_others=keep_others)
    types = [c.type for c in merged]
    assert len(set(types)) == len(types)
    assert types[: len(said)] == list(said)
    assert set(types) == said.keys() | (stood.keys() if keep_others else set())
    for c in merged:
        before = stood.get(c.type)
        if c.type not in said:
            assert c == before
            continue
        since = before.last_transition if before is not None and before.status == c.status else ""
        assert c == replace(said[c.type], last_transition=since or NOW, observed_generation=generation)


@given(new=SAID, previous=STANDING)
def test_saying_the_same_again_changes_nothing(new: list[Condition], previous: list[Condition]) -> None:
    once = merge(new, previous, now=EARLIER, generation=1, keep_others=True)
    again = merge(new, once, now=NOW, generation=1, keep_others=True)
    assert again == once
    assert change_of(once, again) is ConditionChange.NOTHING


@given(conditions=STANDING)
def test_conditions_survive_the_wire(conditions: list[Condition]) -> None:
    for c in conditions:
        assert condition_from_wire(json.loads(json.dumps(condition_to_wire(c)))) == c


def test_lengths_are_bounded() -> None:
    many = [condition(type=f"Kind{i}", reason="R" * 999, message="m" * 9999) for i in range(MAX_CONDITIONS + 1)]
    merged = merge(many, many, now=NOW)
    assert len(merged) == MAX_CONDITIONS
    assert {len(c.reason) for c in merged} == {MAX_REASON_CHARS}
    assert {len(c.message) for c in merged} == {MAX_MESSAGE_CHARS}
    others = merge([condition(type="New")], many[:MAX_CONDITIONS], now=NOW, keep_others=True)
    assert len(others) == MAX_CONDITIONS
    assert others[0].type == "New", "what is said now is never what falls out"


@pytest.mark.parametrize(
    ("after", "change"),
    [
        (condition(last_transition=NOW), ConditionChange.NOTHING),
        (condition(message="limit 25000.5 W is kept"), ConditionChange.NUMBERS),
        (condition(message="limit 26000 W is held"), ConditionChange.WORDS),
        (condition(reason="RaisesHeld"), ConditionChange.JUDGEMENT),
        (condition(status=False), ConditionChange.JUDGEMENT),
        (condition(status=None), ConditionChange.JUDGEMENT),
        (condition(observed_generation=4), ConditionChange.JUDGEMENT),
        (condition(type="Feasible"), ConditionChange.JUDGEMENT),
    ],
)
def test_how_far_two_lists_differ(after: Condition, change: ConditionChange) -> None:
    other = condition(type="Other", message="x")
    assert change_of([condition(), other], [other, after]) is change
    assert change_of([other, after], [condition(), other]) is change


def test_a_list_that_lost_one_is_another_judgement() -> None:
    assert change_of([condition()], []) is ConditionChange.JUDGEMENT
    assert change_of([], []) is ConditionChange.NOTHING


def test_unknown_is_neither_true_nor_false() -> None:
    assert condition_to_wire(condition(status=None))["status"] == "Unknown"
    assert condition_from_wire({"type": "Ready", "status": "Unknown"}).status is None
    assert condition_from_wire({"type": "Ready"}).status is None
    assert "observedGeneration" not in condition_to_wire(condition(observed_generation=None))
