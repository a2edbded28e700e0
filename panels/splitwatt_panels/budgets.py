"""The set *Budgets*: limit, limit in force, charge and draw in one picture, and whether promises hold."""

from __future__ import annotations

from typing import Final

from splitwatt_core import names

from splitwatt_panels.model import Drawing, Panel, PanelRow, PanelSet, PanelStep, Query, Tone, Unit
from splitwatt_panels.promql import BUDGET, JOB, budget

_LIMIT: Final = budget(names.M_BUDGET_LIMIT_WATTS)
_IN_FORCE: Final = budget(names.M_BUDGET_LIMIT_IN_FORCE_WATTS)
_CHARGE: Final = budget(names.M_BUDGET_CHARGE_WATTS)
_DRAW: Final = budget(names.M_BUDGET_MEASURED_WATTS)
_POSTURE: Final = budget(names.M_BUDGET_POSTURE)
_FRESH: Final = budget(names.M_BUDGET_TELEMETRY_FRESH)
_POSTURES: Final = ((0, "Adopting"), (1, "Normal"), (2, "Trim"), (3, "Shed"), (4, "Brake"))
_POSTURE_LEVELS: Final = (PanelStep(2, Tone.WARNING), PanelStep(4, Tone.BAD))
_ANY_IS_BAD: Final = (PanelStep(1, Tone.BAD),)

_NOW: Final = PanelRow(
    "Now",
    (
        Panel(
            "Budgets above their limit",
            Unit.COUNT,
            "Budgets whose meter reads more than the limit in force.",
            "The promise itself. Anything but 0 for longer than ten seconds is a fault to look into at once.",
            (Query(f"sum({_DRAW} > bool {_IN_FORCE})", "above"),),
            Drawing.NUMBER,
            thresholds=_ANY_IS_BAD,
        ),
        Panel(
            "Least headroom",
            Unit.SHARE,
            "Share of the limit in force that is not charged, of the tightest budget.",
            "What is left for pods that wait and for caps to rise. Near 0 the fleet works, and nothing more fits in.",
            (Query(f"min(({_IN_FORCE} - {_CHARGE}) / {_IN_FORCE})", "headroom"),),
            Drawing.NUMBER,
            base=Tone.BAD,
            thresholds=(PanelStep(0, Tone.WARNING), PanelStep(0.02, Tone.GOOD)),
        ),
        Panel(
            "Highest posture",
            Unit.COUNT,
            "The sharpest posture of any budget: Normal, Trim, Shed or Brake.",
            "Above Trim, Splitwatt is taking watts back because a meter showed too many.",
            (Query(f"max({_POSTURE})", "posture"),),
            Drawing.NUMBER,
            thresholds=_POSTURE_LEVELS,
            states=_POSTURES,
        ),
        Panel(
            "Meters that are believed",
            Unit.SHARE,
            "Share of budgets whose telemetry is fresh and plausible.",
            "Below 100 % some budget raises nothing, and stands on what was declared instead of what is drawn.",
            (Query(f"avg({_FRESH})", "fresh"),),
            Drawing.NUMBER,
            base=Tone.WARNING,
            thresholds=(PanelStep(1, Tone.GOOD),),
        ),
    ),
)

_WATTS: Final = PanelRow(
    "Watts",
    (
        Panel(
            "Limit, caps, charge and draw",
            Unit.WATTS,
            "The limit that was asked for, the one in force, what the ledger charges, the GPUs' granted caps with losses "
            "(without the watts that are declared beside them, which are in the charge), and what the meter reads.",
            "Draw stays below charge, and charge below the limit in force: where two lines cross, look here first. A gap in "
            "the draw is a meter without a reading, never zero watts.",
            (
                Query(_DRAW, "{{budget}} draw"),
                Query(_IN_FORCE, "{{budget}} limit in force"),
                Query(_CHARGE, "{{budget}} charge"),
                Query(budget(names.M_BUDGET_CAP_WATTS), "{{budget}} caps"),
                Query(_LIMIT, "{{budget}} limit"),
            ),
        ),
        Panel(
            "Margin to the limit in force",
            Unit.WATTS,
            "Limit in force less charge, and less draw.",
            "The first is room for caps and pods. A large second beside a small first is stranded: caps that nobody uses.",
            (Query(f"{_IN_FORCE} - {_CHARGE}", "{{budget}} charge"), Query(f"{_IN_FORCE} - {_DRAW}", "{{budget}} draw")),
            base=Tone.BAD,
            thresholds=(PanelStep(0, Tone.GOOD),),
        ),
        Panel(
            "Draw above the limit in force",
            Unit.WATTS,
            "By how much the meter reads above the limit in force; 0 while it does not.",
            "Height and length of each violation. One of a second is lag between meter and caps; ten seconds are an alert.",
            (Query(f"clamp_min({_DRAW} - {_IN_FORCE}, 0)", "{{budget}}"),),
            thresholds=_ANY_IS_BAD,
        ),
        Panel(
            "Watts that miss at minimum caps",
            Unit.WATTS,
            "What the limit lacks even with every GPU at its lowest cap; 0 where it fits.",
            "No power policy can keep such a limit: raise it, take GPUs out, or declare less.",
            (Query(budget(names.M_BUDGET_SHORT_WATTS), "{{budget}}"),),
            thresholds=_ANY_IS_BAD,
        ),
    ),
)

_STATE: Final = PanelRow(
    "State",
    (
        Panel(
            "Posture",
            Unit.COUNT,
            "The posture of each budget over time.",
            "Shows when a meter made Splitwatt take watts back, and how long until it let go.",
            (Query(_POSTURE, "{{budget}}"),),
            Drawing.STATES,
            thresholds=_POSTURE_LEVELS,
            states=_POSTURES,
        ),
        Panel(
            "Budgets whose condition does not hold",
            Unit.COUNT,
            "How many budgets say False, by condition. Unknown counts as neither.",
            "Names the kind of trouble; kubectl describe pb says the sentence with its numbers.",
            (Query(f"sum by (condition) ({budget(names.M_BUDGET_CONDITION)} == bool 0)", "{{condition}}"),),
            thresholds=_ANY_IS_BAD,
        ),
        Panel(
            "Telemetry that is believed",
            Unit.COUNT,
            "1 while a budget's meter is fresh and plausible.",
            "When it falls, caps rise no more; the condition TelemetryFresh says why.",
            (Query(_FRESH, "{{budget}}"),),
            Drawing.STATES,
            base=Tone.BAD,
            thresholds=(PanelStep(1, Tone.GOOD),),
            states=((0, "No"), (1, "Yes")),
        ),
        Panel(
            "GPUs that count",
            Unit.COUNT,
            "GPUs charged to each budget, its own and those below.",
            "A step that nobody planned is a node that came, went, or changed its labels.",
            (Query(budget(names.M_BUDGET_GPUS), "{{budget}}"),),
        ),
    ),
)

BUDGETS: Final = PanelSet(
    "budgets",
    "Budgets",
    "Does every budget hold, and what is there room for?",
    (JOB, BUDGET),
    (_NOW, _WATTS, _STATE),
)
