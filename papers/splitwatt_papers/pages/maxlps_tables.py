"""The tables of docs/reproduce/maxlps.md: rows of text from a study's results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Final

from splitwatt_sim.plan.options import profile_named
from splitwatt_sim.servers.kinds import LOSSES

from splitwatt_papers.oversubscribe.budget import static_margin_w
from splitwatt_papers.oversubscribe.search import OURS, WAYS, Comparison
from splitwatt_papers.oversubscribe.study import GPU, Case, StudyResults
from splitwatt_papers.pages.markdown import spread

Rows = list[tuple[str, ...]]
ARRANGEMENT: Final = {True: "split", False: "unsplit"}
NOTHING: Final = "none"
"""Written where no count from the static one on holds."""

MAIN_HEAD: Final = (
    "lists", "static fleet", "way", "GPUs", "servers of two rooms, caps", "tokens/s", "P99 TTFT", "P99 TBT", "P99 E2E",
    "budget used", "largest second", "hold",
)  # fmt: skip
STATIC_HEAD: Final = (
    "lists", "static fleet", "full load", "base load", "P99 TTFT alone", "P99 TTFT", "P99 TBT", "P99 E2E", "budget used",
)  # fmt: skip
READ_HEAD: Final = ("static fleet", "share of the full load", "P99 TTFT of the 192", "mean draw of a GPU", "rest")
REST_HEAD: Final = (
    "rest", "static GPU", "or margin", "at minimum caps", *(way.name for way in WAYS), "ours: tokens/s", "used", "hold",
)  # fmt: skip
OTHER_HEAD: Final = ("changed", "GPUs", "servers, caps", "tokens/s", "P99 TTFT", "budget used", "hold")


def percent(share: float, form: str = ".0f") -> str:
    return f"{100 * share:{form}} %"


def change(case: Case, what: Callable[[Comparison], float]) -> str:
    """Mean and 95 % interval over the judging lists, signed."""
    assert case.verdict is not None, "nothing was judged"
    return spread([what(c) for c in case.verdict.changes], "+.1f", percent=True).replace("± +", "± ")


def _hold(case: Case) -> str:
    assert case.verdict is not None, "nothing was judged"
    return f"{case.verdict.held} of {len(case.verdict.changes)}"


def main_rows(results: StudyResults) -> Rows:
    rows: Rows = []
    for c in results.main:
        start = (c.name, ARRANGEMENT[c.static.fleet.split], c.way.name)
        if c.verdict is None:
            rows.append((*start, NOTHING, *["–"] * (len(MAIN_HEAD) - 4)))
            continue
        felt = (change(c, w) for w in (lambda x: x.tokens, lambda x: x.ttft, lambda x: x.tbt, lambda x: x.e2e))
        used = (spread(c.verdict.share, percent=True), percent(max(c.verdict.peak), ".2f"))
        rows.append((*start, f"**{c.gpus:g}**", str(c.verdict.fleet), *felt, *used, _hold(c)))
    return rows


def static_rows(results: StudyResults) -> Rows:
    """Every static fleet at its base load, on the lists that judge; its watts at the base reading."""
    rows: Rows = []
    for (name, split), static in results.statics.items():
        bench, fleet = results.benches[name], static.fleet
        runs = bench.runs(fleet, static.rate_rps, results.seeds)
        counts = f"{fleet.prefill_servers} + {fleet.decode_servers}" if split else f"{fleet.servers}"
        rows.append(
            (
                name, f"{ARRANGEMENT[split]}, {counts}", f"{static.full_rps:g}/s", f"{static.rate_rps:g}/s",
                f"{bench.alone(fleet).ttft_ms:.0f} ms", f"{fmean(f.ttft_ms for f in runs):.0f} ms",
                f"{fmean(f.tbt_ms for f in runs):.1f} ms", f"{fmean(f.e2e_ms for f in runs) / 1e3:.1f} s",
                percent(fmean(results.base.share(f.gpus_w, fleet.servers) for f in runs), ".1f"),
            )
        )  # fmt: skip
    return rows


def read_rows(results: StudyResults) -> Rows:
    return [
        (ARRANGEMENT[r.split], percent(r.load), percent(r.ttft, "+.1f"), f"{r.gpu_w:.0f} W", f"{r.rest_w:.0f} W")
        for r in results.read
    ]


def rest_rows(results: StudyResults) -> Rows:
    rows: Rows = []
    gpu = profile_named(GPU)
    for reading in dict.fromkeys(c.reading for c in results.rests):
        cases = {c.way: c for c in results.rests if c.reading == reading}
        ours = cases[OURS]
        margin_w = static_margin_w(reading.rest_w, gpu.default_cap_w)
        rows.append(
            (
                f"{reading.rest_w:g} W" + (" (base)" if reading == results.base else ""),
                f"{gpu.default_cap_w + margin_w / (1 + LOSSES):.0f} W", f"{round(margin_w)} W",
                f"{reading.per_room(reading.most_servers(gpu.min_cap_w)):g}",
                *(f"{cases[way].gpus:g}" if cases[way].verdict else NOTHING for way in WAYS),
                *((change(ours, lambda x: x.tokens), percent(fmean(ours.verdict.share), ".1f"), _hold(ours))
                if ours.verdict else ["–"] * 3),
            )
        )  # fmt: skip
    return rows


def other_rows(results: StudyResults) -> Rows:
    rows: Rows = []
    named: Sequence[tuple[str, Case]] = [("nothing: the base case", results.headline), *((c.name, c) for c in results.others)]
    for name, c in named:
        if c.verdict is None:
            rows.append((name, NOTHING, *["–"] * (len(OTHER_HEAD) - 2)))
            continue
        felt = (change(c, lambda x: x.tokens), change(c, lambda x: x.ttft), spread(c.verdict.share, percent=True))
        rows.append((name, f"{c.gpus:g}", str(c.verdict.fleet), *felt, _hold(c)))
    return rows
