"""What conditions are expected to say: every name of a condition and reason that scenes rest on, in one place."""

from __future__ import annotations

from typing import Final

from splitwatt_lab.faults.scene import ANY, Excuse, Expect

NODES: Final = ("a1-n1", "a1-n2", "a2-n1", "a2-n2")
BUSY: Final = "a1-n2"
"""Runs a decode replica: it gives first when its rack is cut, so a cut is never kept without it or its neighbours."""
CUT: Final = "rack-a1"
OTHER: Final = ("rack-a2",)
LEASE_S: Final = 15.0
GRACE_S: Final = 5.0
START_S: Final = 10.0
"""For starting up on a busy machine."""
SUCCESSOR_S: Final = LEASE_S + GRACE_S + START_S
"""From the start of a successor, or the wake of a sleeper, until a limit that it finds lowered is in force."""

ALWAYS_FORBIDDEN: Final = (Expect("pb", ANY, "Feasible", "False", ("MinimumCapsAboveLimit",)),)
"""Every limit that a scene sets is above all minimum caps, so nobody may be told to remove nodes."""


def acks_late(budget: str) -> Expect:
    """Said beside a limit that is kept as well as beside one that is not: any condition, any status."""
    return Expect("pb", budget, ANY, ANY, ("AcknowledgementsLate",))


def stale(budget: str) -> Expect:
    return Expect("pb", budget, "TelemetryFresh", "False")


def meter_says(budget: str, *reasons: str) -> Expect:
    return Expect("pb", budget, "TelemetryFresh", "False", reasons)


def caps_not_enforced(node: str, *reasons: str) -> Expect:
    return Expect("np", node, "CapsEnforced", "False", reasons)


def not_durable(node: str) -> Expect:
    return Expect("np", node, "Ready", "False", ("StateNotDurable",))


def foreign_limit(node: str) -> Expect:
    return Expect("np", node, "ForeignLimit", "True")


def not_ready(budget: str, *reasons: str) -> Expect:
    return Expect("pb", budget, "Ready", "False", reasons)


def no_agent(budget: str) -> Expect:
    return Expect("pb", budget, "CapsEnforced", "False", ("NoAgent",))


UNCLAIMED: Final = (Expect("pb", ANY, "Ready", "False", ("NodesUnclaimed",)),)
"""Nodes that no leaf claims any more are named by a budget that counts them."""


def braked(budget: str) -> tuple[Expect, ...]:
    return (Expect("pb", budget, "WithinBudget", "False", ("MeasuredAboveLimit",)),)


BRAKED: Final = braked(ANY)
"""A meter that cannot be right must not be believed to be above the limit. Where the draw was truly there the word is true
(`verdict.truly_above`)."""

# ------------------------------------------------------------------------------------------------------------------ excuses

UNSEEN_CUT: Final = "a lowered limit is in force its grace (5 s) after an active operator first saw it"


def unseen_cut(after_s: float) -> Excuse:
    """`after_s`: until an operator is active again, plus its grace."""
    return Excuse(UNSEEN_CUT, after_s, cut_only=True)


def deaf_agents(after_s: float) -> Excuse:
    return Excuse("GPUs whose agents are away cannot be lowered until these are back", after_s, cut_only=True)


def blink(after_s: float) -> Excuse:
    return Excuse(
        "a surprise with the agent alive: set again at its next look; the breaker carries it", after_s, until_healed=False
    )


def surprise(after_s: float) -> Excuse:
    return Excuse(
        "a surprise behind a dead agent: reserveWatts of the rack must cover (700 W - cap) x 1.04 per GPU, here up to 4160 W",
        after_s,
    )


def rewired(*budgets: str) -> Excuse:
    return Excuse(
        "the label says that the node hangs on the other rack's feed; the wire of this site did not move", 8.0, budgets=budgets
    )
