"""out/faults.json, and the table of docs/safety.md."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from splitwatt_lab.errors import LabError
from splitwatt_lab.faults.verdict import Outcome

BEGIN: Final = "<!-- faults:table -->"
END: Final = "<!-- /faults:table -->"
GROUPS: Final = ("processes", "nodes", "disks", "objects", "limits", "meters", "self-test", "pairs")


def summary(outcomes: Sequence[Outcome], *, seed: int, minutes: float) -> dict[str, Any]:
    """What the run showed, totals first. The runner's own test counts in no total: it is there to be guilty."""
    judged = [outcome for outcome in outcomes if not outcome.convicted]
    return {
        "scenes": sum(outcome.group != "pairs" for outcome in outcomes),
        "pairs": sum(outcome.group == "pairs" for outcome in outcomes),
        "failed": [outcome.name for outcome in outcomes if not outcome.passed],
        "violation_s_beyond_promises": round(sum(outcome.violation_s_beyond_promise for outcome in judged), 2),
        "tracebacks": sum(len(outcome.tracebacks) for outcome in judged),
        "wrong_conditions": sum(len(outcome.wrong_conditions) for outcome in judged),
        "wrong_exits": sum(len(outcome.wrong_exits) for outcome in judged),
        "seed": seed,
        "minutes": round(minutes, 1),
        "outcomes": [outcome.as_json() for outcome in outcomes],
    }


def write_json(outcomes: Sequence[Outcome], path: Path, *, seed: int, minutes: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(summary(outcomes, seed=seed, minutes=minutes), indent=1) + "\n")
    fresh.rename(path)


def line(outcome: Outcome) -> str:
    """One outcome for the terminal: the verdict, its numbers, and what is wrong."""
    word = "passed" if outcome.passed else "FAILED"
    healthy = "not healthy" if outcome.recovery_s is None else f"healthy after {outcome.recovery_s:.1f} s"
    obeyed = "cut not obeyed" if outcome.obeyed_s is None else f"cut obeyed in {outcome.obeyed_s:.2f} s"
    beyond = f"{outcome.violation_s_beyond_promise:.1f} s beyond the promise (worst {outcome.worst_overshoot_w:+d} W)"
    excused = f", {outcome.excused_s:.1f} s excused (worst {outcome.worst_excused_w:+d} W)" if outcome.excused_s else ""
    text = f"{word}  {outcome.name}: {beyond}{excused}; {healthy}; {obeyed}; {outcome.seconds:.0f} s"
    wrong = [*outcome.where, *outcome.wrong_conditions, *outcome.wrong_exits, *outcome.tracebacks, *outcome.problems]
    return "\n".join([text, *(f"        {sentence}" for sentence in wrong)])


def table(outcomes: Sequence[Outcome], *, date: str, seed: int) -> str:
    """The failure table in Markdown: a row for each scene, pairs summed up in one."""
    rows = [
        f"Played by `make faults` on {date}, seed {seed}: {sum(o.group != 'pairs' for o in outcomes)} scenes and "
        f"{sum(o.group == 'pairs' for o in outcomes)} random pairs, {sum(not o.passed for o in outcomes)} of them failed.",
        "",
        "| scene | promise | what is seen | beyond it, s | excused, s | worst W | healthy after, s | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    reasons: dict[str, str] = {}
    singles = [o for group in GROUPS for o in outcomes if o.group == group and group != "pairs"]
    for o in singles:
        healthy = "–" if o.recovery_s is None else f"{o.recovery_s:.1f}"
        worst_w = max(o.worst_overshoot_w, o.worst_excused_w)
        marks = [reasons.setdefault(why, chr(ord("a") + len(reasons))) for why in o.excuses if o.excused_s]
        excused = " ".join([f"{o.excused_s:.1f}", *(f"({mark})" for mark in dict.fromkeys(marks))])
        verdict = "pass" if o.passed else "**fail**"
        numbers = f"{o.violation_s_beyond_promise:.1f} | {excused} | {worst_w:+d} | {healthy}"
        seen = ", ".join(f"`{expect}`" for expect in o.expected) or "–"
        rows.append(f"| {o.name} | {o.promise} | {seen} | {numbers} | {verdict} |")
    pairs = [o for o in outcomes if o.group == "pairs"]
    if pairs:
        failed = [o.name for o in pairs if not o.passed]
        beyond_s = sum(o.violation_s_beyond_promise for o in pairs)
        said = "pass" if not failed else f"**fail**: {'; '.join(failed)}"
        rows.append(f"| {len(pairs)} random pairs | Both promises hold together. | – | {beyond_s:.1f} | | | | {said} |")
    covered = [f"- ({mark}) {why}" for why, mark in reasons.items()]
    return "\n".join([*rows, "", "What covers the excused seconds:", "", *covered] if covered else rows)


def rewrite(page: Path, text: str) -> None:
    """Put the table between the page's markers. Raises LabError when it has none."""
    before = page.read_text()
    pattern = re.compile(re.escape(BEGIN) + r".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(before):
        raise LabError(f"{page} has no markers {BEGIN} … {END} for the table")
    page.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", before))
