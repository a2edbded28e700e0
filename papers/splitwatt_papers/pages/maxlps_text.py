"""The words of docs/reproduce/maxlps.md. Every figure in them is published (docs/facts.md, others) or comes from the results."""

from __future__ import annotations

from statistics import fmean
from typing import Final

from splitwatt_core.protocol.contract import Phase
from splitwatt_sim.plan.options import MODEL_2026, profile_named
from splitwatt_sim.servers.kinds import LOSSES

from splitwatt_papers.oversubscribe.budget import PUBLISHED, static_margin_w
from splitwatt_papers.oversubscribe.fleets import LIST_S, WARM_S
from splitwatt_papers.oversubscribe.search import (
    ALONE_TIMES,
    MARGIN,
    OURS,
    SEARCH_SEEDS,
    SPLIT_UNIFORM,
    TBT_MS,
    UNSPLIT,
    WORSE,
)
from splitwatt_papers.oversubscribe.study import (
    AIM_GPUS,
    AIM_SHARE,
    GPU,
    LIGHTEST,
    OTHER_DECODE_W,
    SPARE,
    Packed,
    StudyResults,
)
from splitwatt_papers.pages.markdown import markdown, wrapped
from splitwatt_papers.pages.maxlps_tables import (
    ARRANGEMENT,
    MAIN_HEAD,
    NOTHING,
    OTHER_HEAD,
    READ_HEAD,
    REST_HEAD,
    STATIC_HEAD,
    change,
    main_rows,
    other_rows,
    percent,
    read_rows,
    rest_rows,
    static_rows,
)

KW: Final = f"{PUBLISHED.budget_w / 1e3:g} kW"
BEFORE: Final = PUBLISHED.static_gpus
AFTER: Final = PUBLISHED.gpus
GAIN: Final = percent(PUBLISHED.tokens_gain, "+.1f")
TTFT: Final = percent(PUBLISHED.ttft_p99_worse, "+.0f")
USED: Final = percent(PUBLISHED.share_used, ".1f")
STATIC: Final = f"{PUBLISHED.static_w:.0f} W"
DRAWN: Final = f"{PUBLISHED.drawn_w:.0f} W"
LIMIT: Final = percent(WORSE)
FILLED_W: Final = 849
"""The rest at which a static GPU at its largest cap leaves no margin."""


def aims(gpus: float, share: float) -> tuple[str, str]:
    """What is said of the two aims: both are to be passed, not met."""
    return (
        f"more than the aim of {AIM_GPUS}" if gpus > AIM_GPUS else f"**not more than the aim of {AIM_GPUS}**",
        f"more than the aim of {percent(AIM_SHARE)}" if share > AIM_SHARE else f"**not the aim of {percent(AIM_SHARE)}**",
    )


def answer(results: StudyResults) -> str:
    """The base case in words: what was reached, what is missed elsewhere, and how much of it is ours."""
    case, base = results.headline, results.base
    if case.verdict is None:
        return f"At the base reading no count from {BEFORE} GPUs on holds."
    share = fmean(case.verdict.share)
    counted, used = aims(case.gpus, share)
    alike = (c for c in results.main if (c.name, c.static) == (case.name, case.static))
    uniform = next(c for c in alike if c.way == SPLIT_UNIFORM)
    room_w = (PUBLISHED.budget_w / AFTER - base.rest_w) / (1 + LOSSES)
    return f"""At the base reading (a rest of {base.rest_w:g} W per GPU, split against split, fixed lengths)
**{case.gpus:g} GPUs** serve in {KW} within those {LIMIT} of {BEFORE}: {counted}. They bring
{change(case, lambda c: c.tokens)} tokens/s, with P99 TTFT {change(case, lambda c: c.ttft)}, and use
**{percent(share, ".1f")}** of the budget: {used}.

- **The count hangs on the rest**, which no source says. {AIM_GPUS} are reached up to a rest of
  **{results.even_rest_w} W**.
{_missed(results)}
- Most of it is the reading, not the policy: one cap for all counts {uniform.gpus:g}, and at this rest {AFTER} GPUs
  have {room_w:.0f} W each, more than ours draw in any phase. The policy is worth {uniform.gpus:g} → {case.gpus:g}.
- Whether their fleet is split is not published. {_elsewhere(results)}
- So it is no head-to-head: their GPU, model, load and guard bands are not published."""


def _elsewhere(results: StudyResults) -> str:
    """Our way against the other static fleets and lists, and the unsplit way against its own."""
    ours = [c for c in results.main if c.way == OURS and c is not results.headline]
    counts = ", ".join(f"{c.gpus:g} ({c.name}, {ARRANGEMENT[c.static.fleet.split]} before)" for c in ours)
    own = {f"{c.gpus:g}" for c in results.main if c.way == UNSPLIT and not c.static.fleet.split}
    return f"Ours elsewhere: {counts}. A fleet that stays unsplit, under one cap: {' or '.join(sorted(own))}."


def _missed(results: StudyResults) -> str:
    """Cases in which our way does not pass the aim, by name."""
    names = [(f"a rest of {c.name}", c) for c in results.rests if c.way == OURS]
    names += [(c.name, c) for c in results.others]
    missed = ", ".join(f"{name} ({c.gpus:g})" for name, c in names if c.gpus <= AIM_GPUS)
    return f"- {AIM_GPUS} are **not** passed with: {missed}." if missed else f"- {AIM_GPUS} are passed in all variants below."


def bound(results: StudyResults) -> str:
    """Where the budget goes in the base case, and what a bet on the sum of draws would give."""
    case, base = results.headline, results.base
    if case.verdict is None:
        return "Nothing was judged."
    fleet, used = case.verdict.fleet, fmean(case.verdict.share)
    pools = [(fleet.prefill_servers, fleet.caps.prefill_w), (fleet.decode_servers, fleet.caps.decode_w)]
    charged, rest = base.charge_w(pools) / base.budget_w, base.share(0.0, fleet.servers)
    return f"""| of the budget | base case |
| --- | --- |
| the rest, taken as constant | {percent(rest, ".1f")} |
| drawn by GPUs, with losses | {percent(used - rest, ".1f")} |
| charged to caps and not drawn: prefill GPUs between two prompts | {percent(charged - used, ".1f")} |
| not charged | {percent(1 - charged, ".2f")} |

A cap that binds is a watt that is used. So a full fleet under tight caps comes near its budget; its largest judged second
is {percent(max(case.verdict.peak), ".2f")}. What a provable bound cannot use is the time in which a GPU draws less than
its cap: more at a
lighter load, and more with caps above the natural draw, as `Uniform` gives them to decode. Nor can it use a rest that
is declared and not drawn (section 4).

*Betting on the sum of draws* instead: caps off, and servers counted by the largest second seen on the search's lists.

{chr(10).join(_packed(p) for p in results.packed)}

`Strict` mode does not do this. It promises that what is charged never exceeds the limit."""


def _packed(packed: Packed) -> str:
    over, lists = sum(peak > 1.0 for peak in packed.peak), len(packed.peak)
    count = f"- {percent(packed.load)} of the full load: {packed.gpus:g} GPUs."
    most = percent(max(packed.peak), ".2f")
    return f"{count} Of the lists that judge, **{over} of {lists}** went above the budget in some second. The most: {most}."


def page(results: StudyResults, command: str) -> str:
    """docs/reproduce/maxlps.md, whole."""
    least_w = profile_named(GPU).min_cap_w
    lists = f"(Poisson, {LIST_S:.0f} s, the first {WARM_S:.0f} s not judged)"
    return wrapped(f"""# More GPUs on the watts of {BEFORE}, simulated

`{command}` writes this page, its plot and `out/reproduce_maxlps.csv`. **Simulated**: no GPU was part of it.

Published of NVIDIA DPS / MaxLPS, a closed system: {BEFORE} → {AFTER} GPUs in {KW}, {GAIN} tokens/s, P99 TTFT {TTFT},
{USED} of the budget used; prompts of 8k tokens, outputs of 1k. Not published: what a GPU draws and what the rest, the
load, whether phases are split. So this page does not reproduce that system. It puts its question to ours: **how many
GPUs serve in that budget, under caps that provably fit it, with P99 TTFT at most {LIMIT} above the statically
provisioned fleet's**, and how much of the budget is used? Aims: more than {AIM_GPUS} GPUs and more than
{percent(AIM_SHARE)}.

## 1. Answer

{answer(results)}

![GPUs by the assumed rest, and P99 TTFT by GPUs](../img/reproduce_maxlps.png)

Each row is the largest count its search found, judged on {len(results.seeds)} lists that no search saw {lists}, each
against the static fleet on the same list. Mean ± 95 % interval over lists (Student's t).

{markdown(MAIN_HEAD, main_rows(results))}

- *GPUs*: in {KW}. *tokens/s*: against {BEFORE} GPUs. *Largest second*: the largest mean draw of a second, of all lists.
  *Hold*: lists on which neither P99 TTFT nor P99 TBT is more than {LIMIT} above. The claim is about TTFT alone.
- `PhaseAware` and `Uniform` are the operator's own policies, asked about one budget. `PhaseAware` holds decode at its
  cliff and gives prefill what that frees. `Uniform` gives decode watts that it does not draw.
- *{NOTHING}*: no count from {BEFORE} on holds. An unsplit fleet under a split one's load misses its P99 TBT by far, for
  prompts run between tokens.
- With fixed lengths a split fleet is held to an unsplit one's TTFT at a disadvantage: a split machine takes a prompt
  whole, so who waits may wait for one whole prefill. Only splits with spare prefill servers hold.

The static fleets, uncapped, servers of prefill + decode:

{markdown(STATIC_HEAD, static_rows(results))}

## 2. What the room's watts are taken to be

{_watts(results)}

## 3. As a function of the rest

{markdown(REST_HEAD, rest_rows(results))}

- *static GPU*, *or margin*: the two readings of section 2. *At minimum caps*: every GPU at {least_w} W, whatever users
  feel; no caps count more. Where that is below {AIM_GPUS}, the aim is out of reach at any latency.
- Split ways against the split static fleet, the unsplit way against the unsplit one; fixed lengths.
- *hold* short of all lists: the {len(SEARCH_SEEDS)} lists of the search were kinder, and the count is a little too high.
{_filled()}

## 4. Other assumptions, one at a time

`{OURS.name}` against the split static fleet, fixed lengths.

{markdown(OTHER_HEAD, other_rows(results))}

One room begins with 17 servers, 136 GPUs; its tokens/s count from there, and its base load follows from the same rule.

## 5. What a provable bound can use

{bound(results)}

## 6. Every assumption

{assumptions()}
""")


def _watts(results: StudyResults) -> str:
    gpu, base = profile_named(GPU), results.base
    own_w = PUBLISHED.static_w - base.rest_w
    margin_w = static_margin_w(base.rest_w, gpu.default_cap_w)
    return f"""{KW} / {BEFORE} = **{STATIC}** per GPU of static provisioning, all in. {KW} × {USED} / {AFTER} =
**{DRAWN}** of mean draw per GPU at the published operating point. No source divides either into GPU and rest. The draw
of a GPU of our model ({AFTER} {GPU}, uncapped, {GAIN} tokens/s) leaves of the second figure

    rest = {DRAWN} - {1 + LOSSES:g} × mean draw of a GPU

{markdown(READ_HEAD, read_rows(results))}

**Base reading: {base.rest_w:g} W**, the largest of these, rounded up: a large rest leaves least to caps. The base
*load* is the fullest at which the published point can be met in our model: a full fleet has least time to spare. Both
choices are the ones against us, and no one load has both.

A static GPU then has {own_w:.0f} W for itself, and a {GPU} draws at most {gpu.default_cap_w} W. Two readings. Their
GPU has a larger limit than our profile's, {own_w / (1 + LOSSES):.0f} W. Or static provisioning holds a margin of
{margin_w:.0f} W per GPU that nothing draws. In this simulation both do the same: no static GPU is ever slowed by its
cap. But a margin may be there for a reason that is not published (a breaker's derating, a failed feed), and then it is
not ours to fill."""


def _filled() -> str:
    gpu = profile_named(GPU)
    left_w = (PUBLISHED.drawn_w - FILLED_W) / (1 + LOSSES)
    return f"""- {FILLED_W} W: caps of {gpu.default_cap_w} W with {percent(LOSSES)} losses and this rest are {STATIC}, without
  margin (889 W without losses). It is unlikely: of the {DRAWN} at the published operating point it leaves a GPU
  {left_w:.0f} W, and ours draws {gpu.idle_w} W idle."""


def assumptions() -> str:
    """A numbered list."""
    gpu = profile_named(GPU)
    prefill, decode = gpu.phase(Phase.PREFILL), gpu.phase(Phase.DECODE)
    assert prefill is not None and decode is not None
    rooms_kw = 2 * PUBLISHED.budget_w / 1e3
    return f"""1. The GPU is {GPU} as in `profiles.json`: prefill draws {prefill.natural_w} W, decode {decode.natural_w} W
   (means of measured operators, grade D; another report says {OTHER_DECODE_W} W for decode), idle {gpu.idle_w} W,
   caps {gpu.min_cap_w} to {gpu.default_cap_w} W (both D). Single operators peak above {gpu.default_cap_w} W: a cap bounds a
   mean over its reaction time, and so does this page.
2. What a cap costs: prefill by one published point of another GPU and a derived curve; decode by a cliff at
   {decode.cliff_w} W (both U).
3. {MODEL_2026}, eight GPUs a replica, times from aiconfigurator (D: an estimate; decode up to 11 % off). The claim
   names neither model nor replica.
4. Servers have eight GPUs, and {BEFORE} GPUs are 17.5 of them. So two rooms are taken together: one budget of
   {rooms_kw:g} kW, one router, 35 servers before. Counts go in steps of 4 GPUs a room.
5. The budget counts Σ (rest + {1 + LOSSES:g} × cap), as I1 does: {percent(LOSSES)} losses on GPU watts, declared and
   drawn.
6. The rest is constant, and declared as it is drawn (section 4: {percent(SPARE)} more). Real fans and power supplies
   follow the load.
7. There is no reserve (`reserveWatts` would come off the budget) and no fixed load beside the rest.
8. The load per GPU is the same before and after: N GPUs carry N/{BEFORE} of the rate. *Full load*: the largest rate of
   any split of the static fleet with P99 TTFT within {ALONE_TIMES:g} times its value alone and P99 TBT within
   {TBT_MS:g} ms. *Base load*: of it, the largest rate from which {AFTER} uncapped GPUs carry {GAIN} with P99 TTFT at
   most {TTFT}, and P99 TBT within {TBT_MS:g} ms.
9. The rest is read at loads from {percent(LIGHTEST)} of the full one on. That lower end is a choice; a lighter load
   would leave a larger rest.
10. Arrivals are Poisson. Lengths are fixed at 8192 and 1024, or each uniform within half of that. Beyond 8192 tokens
    prefill times go on along a line, a lower bound. No prefix is shared.
11. Every count takes its best split. Caps stay as the policy set them for the whole run; nothing acts on queues.
12. A search keeps {percent(MARGIN)} of the {LIMIT} free, on {len(SEARCH_SEEDS)} lists of its own.
13. Caps hold without overshoot, and all GPUs are alike.
14. [planning.md](../planning.md) lists what the fleet engine leaves out, failures first."""
