"""Many meters asked about in one question: selectors that differ in the value of one label alone are one family.

Theory. A house names its meters `rack_power_watts{rack="a1"}`, `{rack="a2"}` and so on. `sum by (rack)` over
`rack_power_watts{rack=~"a1|a2|…"}` gives the same numbers as a sum for each, one row for each rack, and likewise the count, the
extremes and the oldest sample's time: a group has exactly the series that its own selector has. So a server looks up five times
for a family, where it did so five times for each meter.

Protected: a row goes to the meter whose value it carries and to nobody else; what cannot be read with certainty is not folded
and is asked about as ever. Pure.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

MIN_FAMILY: Final = 2
_SELECTOR: Final = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{(.*)\})?\s*", re.DOTALL)
_MATCHER: Final = re.compile(
    r"""\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')\s*(,|\Z)""", re.DOTALL
)
_SPECIAL: Final = re.compile(r"[.+*?()|\[\]{}^$]")
_NAME_LABEL: Final = "__name__"


@dataclass(frozen=True, slots=True)
class MeterQuestion:
    """What is asked of one meter: plain selectors, all matchers in them, and PromQL's aggregation."""

    selector: str
    age_selector: str
    aggregation: str


@dataclass(frozen=True, slots=True)
class _Matcher:
    label: str
    op: str
    text: str
    """As it was written, with its quotes."""

    @property
    def value(self) -> str | None:
        """What the label equals, None where that is not certain: another operator, nothing, or an escape in it."""
        value = self.text[1:-1]
        return value if self.op == "=" and value and "\\" not in value and '"' not in value else None

    def __str__(self) -> str:
        return f"{self.label}{self.op}{self.text}"


@dataclass(frozen=True, slots=True)
class _Shape:
    metric: str
    matchers: tuple[_Matcher, ...]

    def values(self) -> dict[str, str]:
        """By label, of those that are named once and equal something."""
        times = Counter(matcher.label for matcher in self.matchers)
        return {
            matcher.label: matcher.value
            for matcher in self.matchers
            if matcher.value is not None and times[matcher.label] == 1 and matcher.label != _NAME_LABEL
        }

    def without(self, label: str) -> tuple[str, tuple[str, ...]]:
        return self.metric, tuple(sorted(str(matcher) for matcher in self.matchers if matcher.label != label))


def _shape(selector: str) -> _Shape | None:
    """None where it is anything but a metric's name and matchers."""
    found = _SELECTOR.fullmatch(selector)
    if found is None:
        return None
    matchers, at, text = [], 0, (found[2] or "").rstrip().removesuffix(",")
    while at < len(text):
        row = _MATCHER.match(text, at)
        if row is None or (row[4] == "," and row.end() == len(text)):
            return None
        matchers.append(_Matcher(row[1], row[2], row[3]))
        at = row.end()
    return _Shape(found[1], tuple(matchers))


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is the same in a family: selectors as metric and matchers, without the label."""

    label: str
    aggregation: str
    series: tuple[str, tuple[str, ...]]
    ages: tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Family:
    """Meters that differ in the value of one label. `members`: their keys by that value."""

    kind: _Kind
    members: Mapping[str, str]

    @property
    def label(self) -> str:
        return self.kind.label

    @property
    def aggregation(self) -> str:
        return self.kind.aggregation

    def selectors(self, values: Iterable[str]) -> tuple[str, str]:
        """Of the series of all these, and of those that tell their age."""
        some = f'{self.label}=~"{"|".join(map(escaped, values))}"'
        return _selector(self.kind.series, some), _selector(self.kind.ages, some)

    def owner(self, labels: Mapping[str, str]) -> str | None:
        """Whose a row with these labels is; None: nobody's who is of the family."""
        return self.members.get(labels.get(self.label, ""))


def _selector(series: tuple[str, tuple[str, ...]], some: str) -> str:
    metric, common = series
    return f"{metric}{{{','.join((*common, some))}}}"


def escaped(value: str) -> str:
    """A label's value without backslash, as part of a regular expression (RE2, which a matcher anchors) in double quotes."""
    return _SPECIAL.sub(lambda found: "\\\\" + found[0], value)


def families(questions: Mapping[str, MeterQuestion]) -> list[Family]:
    """The families of these, by their keys; who is of none is in none. Each meter goes where most others are."""
    kinds: dict[_Kind, dict[str, str]] = defaultdict(dict)
    ways: dict[str, list[tuple[_Kind, str]]] = defaultdict(list)
    for key, question in questions.items():
        shape, age = _shape(question.selector), _shape(question.age_selector)
        if shape is None or age is None:
            continue
        aged = age.values()
        for label, value in shape.values().items():
            kind = _Kind(label, question.aggregation, shape.without(label), age.without(label))
            if aged.get(label) == value and value not in kinds[kind]:
                kinds[kind][value] = key
                ways[key].append((kind, value))
    chosen: dict[_Kind, dict[str, str]] = defaultdict(dict)
    for key, open_to in ways.items():
        kind, value = max(open_to, key=lambda way: (len(kinds[way[0]]), way[0].label))
        chosen[kind][value] = key
    return [Family(kind, members) for kind, members in chosen.items() if len(members) >= MIN_FAMILY]
