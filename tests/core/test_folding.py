"""Families of meters: each gets the numbers of its own selector, and what cannot be read with certainty is left out."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_core.budget.meters.folding import Family, MeterQuestion, families
from support.sizes import EXAMPLES

LABELS = ("rack", "feed", "row")
VALUES = st.sampled_from(["a1", "a2", "a", "a1|a2", "a.1", "a+1", "x y", "(", "[b]", "a-1", "ä", "^a1$", "a*", "{1}", "b?"])
OPS = st.sampled_from(["=", "=", "=", "!="])
Series = Mapping[str, str]
_ROW = re.compile(r'\s*(\w+)(=~|!=|=)"((?:[^"\\]|\\.)*)"\s*(?:,|$)')


def written(metric: str, matchers: Mapping[str, tuple[str, str]]) -> str:
    rows = [f'{label}{op}"{value}"' for label, (op, value) in matchers.items()]
    return f"{metric}{{{', '.join(rows)}}}"


def meaning(selector: str) -> tuple[str, list[tuple[str, str, str]]]:
    """As Prometheus reads it: metric, and rows of label, operator and unquoted text."""
    metric, _, rest = selector.partition("{")
    return metric, [(m[1], m[2], re.sub(r"\\(.)", r"\1", m[3])) for m in _ROW.finditer(rest.removesuffix("}"))]


def selects(selector: str, series: Series) -> bool:
    metric, rows = meaning(selector)
    if series["__name__"] != metric:
        return False
    for label, op, text in rows:
        value = series.get(label, "")
        if op == "=~":
            if re.fullmatch(text, value) is None:
                return False
        elif (value == text) != (op == "="):
            return False
    return True


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, MeterQuestion], list[Series]]:
    some = st.sampled_from(draw(st.lists(VALUES, min_size=2, max_size=4, unique=True)))  # so that they often meet
    ways = draw(st.lists(st.dictionaries(st.sampled_from(LABELS), st.tuples(OPS, some), max_size=2), min_size=1, max_size=2))
    questions = {}
    for k in range(draw(st.integers(1, 12))):
        rows = draw(st.sampled_from(ways)) | {"rack": (draw(OPS), draw(some))}
        aged = draw(st.sampled_from(["watts", "raw_watts"]))
        questions[f"q{k}"] = MeterQuestion(written("watts", rows), written(aged, rows), draw(st.sampled_from(["sum", "max"])))
    series: list[Series] = [
        {"__name__": draw(st.sampled_from(["watts", "raw_watts"])), "n": str(n)}
        | draw(st.dictionaries(st.sampled_from(LABELS), some, max_size=3))
        for n in range(draw(st.integers(0, 20)))
    ]
    return questions, series


def answered(family: Family, series: list[Series]) -> dict[str, tuple[set[str], set[str]]]:
    """By key: the series that its rows are made of, by number, and those that tell their age."""
    found: dict[str, tuple[set[str], set[str]]] = {key: (set(), set()) for key in family.members.values()}
    for part, selector in enumerate(family.selectors(list(family.members))):
        for one in series:
            if selects(selector, one):
                key = family.owner({family.label: one.get(family.label, "")})  # all that `by` leaves of its labels
                assert key is not None, "a row that belongs to nobody"
                found[key][part].add(one["n"])
    return found


@settings(max_examples=4 * EXAMPLES)
@given(worlds())
def test_each_gets_what_its_own_selector_gives(world: tuple[dict[str, MeterQuestion], list[Series]]) -> None:
    questions, series = world
    seen: set[str] = set()
    for family in families(questions):
        assert len(family.members) > 1 and seen.isdisjoint(family.members.values())
        seen |= set(family.members.values())
        for key, (values, ages) in answered(family, series).items():
            question = questions[key]
            assert question.aggregation == family.aggregation
            assert values == {one["n"] for one in series if selects(question.selector, one)}
            assert ages == {one["n"] for one in series if selects(question.age_selector, one)}


def question(selector: str, *, age: str = "", aggregation: str = "sum") -> MeterQuestion:
    return MeterQuestion(selector, age or selector, aggregation)


def folded(*questions: MeterQuestion) -> list[set[str]]:
    return [set(family.members.values()) for family in families({str(k): q for k, q in enumerate(questions)})]


def test_a_thousand_racks_are_one_family() -> None:
    asked = {f"q{k}": question(f'rack_power_watts{{rack="r{k}",site="x"}}') for k in range(1000)}
    (family,) = families(asked)
    assert (family.label, len(family.members)) == ("rack", 1000)
    selector, aged = family.selectors(["r1", "r2"])
    assert selector == aged == 'rack_power_watts{site="x",rack=~"r1|r2"}'
    assert family.owner({"rack": "r7"}) == "q7"
    assert family.owner({"rack": "zz"}) is family.owner({}) is None


def test_order_spaces_and_a_last_comma_make_no_difference() -> None:
    assert folded(question('w{rack="a", site="x"}'), question('w { site="x",rack="b", }')) == [{"0", "1"}]


def test_nothing_is_folded_that_is_not_certain() -> None:
    assert folded(question('w{rack="a"}'), question('w{rack=~"b"}')) == []
    assert folded(question('w{rack="a"}'), question('w{rack=""}')) == [], "an empty value matches series without the label"
    assert folded(question('w{rack="a"}'), question('w{rack="b\\\\n"}')) == [], "an escape"
    assert folded(question('w{rack="a"}'), question("w")) == []
    assert folded(question('w{rack="a"}'), question('v{rack="b"}')) == []
    assert folded(question('w{rack="a"}'), question('w{rack="b"}', aggregation="max")) == []
    assert folded(question('w{rack="a"}'), question('w{rack="b",rack!="c"}')) == []
    assert folded(question('w{__name__="w"}'), question('w{__name__="v"}')) == []
    assert folded(question('w{rack="a"}', age='v{rack="a"}'), question('w{rack="b"}', age='v{rack="c"}')) == []
    assert folded(question('w{rack="a"}'), question("sum(w)"), question("w[5m]"), question('w{rack="b"')) == []
    assert folded(question('w{rack="a"}'), question("w{rack='a\"b'}")) == []


def test_one_that_could_be_of_two_families_is_of_the_larger() -> None:
    asked = [question(f'w{{rack="r{k}",feed="A"}}') for k in range(3)]
    assert folded(*asked, question('w{rack="r0",feed="B"}')) == [{"0", "1", "2"}]
