"""Scenes of objects: deleted, moved, mistaken, malformed, forged, too many; and limits that change without end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from splitwatt_lab.faults import expectations as say
from splitwatt_lab.faults.expectations import BUSY, CUT, OTHER
from splitwatt_lab.faults.limits import LimitsInFlurry
from splitwatt_lab.faults.objects import (
    Added,
    CrdDeleted,
    LeaseSpoiled,
    Malformed,
    NodeDeleted,
    NodePowerDeleted,
    NodesWithoutAgent,
    ObjectDeleted,
    Patched,
    Relabelled,
    StatusForged,
)
from splitwatt_lab.faults.scene import Json, Scene

LEAF: Final = "rack-a2"
DECODE: Final = BUSY
JUNK_BUDGETS: Final = 500
EXTREME_W: Final = 1_000_000_000


def circle() -> Mapping[str, Json]:
    return {"hall-1": {"limitWatts": 9000, "parent": "hall-2"}, "hall-2": {"limitWatts": 9000, "parent": "hall-1"}}


def second_claim() -> Mapping[str, Json]:
    claim = {"matchLabels": {"splitwatt.io/rack": "a2"}}
    watts = {"limitWatts": 13_000, "nonGpuWattsPerNode": 2_800, "unmanagedWattsPerNode": 10_200}
    return {"rack-b": {**watts, "parent": "row-a", "nodeSelector": claim}}


def extremes() -> Mapping[str, Json]:
    return {
        "big": {"limitWatts": 1000, "fixedWatts": EXTREME_W},
        "small": {"limitWatts": 1000, "fixedWatts": EXTREME_W, "parent": "big"},
        "tiny": {"limitWatts": 1},
    }


def five_hundred() -> Mapping[str, Json]:
    return {f"junk-{k}": {"limitWatts": 1000 + k} for k in range(JUNK_BUDGETS)}


def min_above_max(rows: list[Json]) -> list[Json]:
    return [row | {"minCapWatts": 700, "maxCapWatts": 200} for row in rows]


def one_uuid(rows: list[Json]) -> list[Json]:
    return [row | {"uuid": rows[0]["uuid"]} for row in rows]


def nothing(rows: list[Json]) -> list[Json]:
    return []


def all_acknowledged_low(rows: list[Json]) -> list[Json]:
    return [row | {"managementCapWatts": 1, "enforcedCapWatts": 1, "minCapWatts": 1} for row in rows]


def _pb(*names: str) -> tuple[str, ...]:
    return tuple(f"budget:{name}" for name in names)


OBJECTS: Final = (
    Scene(
        name="nodepower-deleted", fast=True, group="objects", hold_s=4,
        promise="A new one appears; the agent holds its caps, and the node counts at its default until acknowledged anew.",
        faults=(NodePowerDeleted(node=BUSY, touch=(f"np:{BUSY}",)),),
    ),
    Scene(
        name="leaf-deleted", fast=True, group="objects", hold_s=6, expects=(say.not_ready("row-a", "LeafGone"),),
        promise="Its nodes still count above and nothing is raised into their watts; the parent says LeafGone.",
        faults=(ObjectDeleted(name=LEAF, touch=_pb(LEAF)),),
    ),
    Scene(
        name="leaf-deleted-and-the-other-cut", group="objects", hold_s=8, cut=CUT,
        promise="The other leaf of the row is still held to its own limit.",
        faults=(ObjectDeleted(name=LEAF, touch=_pb(LEAF)),),
    ),
    Scene(
        name="root-deleted", group="objects", hold_s=8, cut=CUT, expects=(say.not_ready(CUT),),
        promise="Leaves without their root keep their limits, and nothing is raised below them.",
        faults=(ObjectDeleted(name="row-a", touch=_pb("row-a")),),
    ),
    Scene(
        name="leaf-loses-its-parent", group="objects", hold_s=8,
        promise="A field left out claims nothing: the leaf's nodes count in the row as before.",
        faults=(Patched(name=LEAF, spec={"parent": None}, touch=_pb(LEAF)),),
    ),
    Scene(
        name="leaf-names-a-parent-that-is-not-there", group="objects", hold_s=8, expects=(say.not_ready(LEAF),),
        promise="The same for a name that nobody bears.",
        faults=(Patched(name=LEAF, spec={"parent": "row-z"}, touch=_pb(LEAF)),),
    ),
    Scene(
        name="crd-of-nodepower-deleted", group="objects", hold_s=8, recovery_s=60,
        promise="No cap rises; made again, every node gets its grants back without a restart.",
        faults=(CrdDeleted(touch=("np", f"np:{BUSY}")),),
    ),
    Scene(
        name="inferencecluster-deleted", group="objects", hold_s=8, recovery_s=60,
        promise="Its pods go and their watts are free for others; applied again, it is served again.",
        faults=(ObjectDeleted(name="chat", touch=("ic:chat",)),),
    ),
    Scene(
        name="node-object-deleted", group="objects", hold_s=10, recovery_s=60,
        promise="Its NodePower stays, and its charge with it.",
        faults=(NodeDeleted(node=BUSY, touch=(f"node:{BUSY}", f"agent:{BUSY}")),),
    ),
    Scene(
        name="ghost-node", group="objects", hold_s=10, recovery_s=60,
        promise="A Node that is gone with its agent, and may draw on, stays charged until a person releases it.",
        faults=(NodeDeleted(node=BUSY, agent_dead=True, touch=(f"node:{BUSY}", f"agent:{BUSY}")),),
    ),
    Scene(
        name="rack-label-moved", group="objects", hold_s=8,
        promise="Both budgets count the node until a grant made after the move is acknowledged.",
        faults=(Relabelled(node=DECODE, rack="a2", touch=(f"label:{DECODE}",), excuse=say.rewired("rack-a1", "rack-a2")),),
    ),
    Scene(
        name="rack-label-removed", group="objects", hold_s=8, expects=say.UNCLAIMED,
        promise="A missing label claims nothing: the node stays charged where it was, and no neighbour rises.",
        faults=(Relabelled(node=DECODE, rack=None, touch=(f"label:{DECODE}",)),),
    ),
    Scene(
        name="two-leaves-claim-a-node", fast=True, group="objects", hold_s=6, cut=CUT,
        expects=(say.not_ready(LEAF, "OverlappingSelectors"), say.not_ready("rack-b", "OverlappingSelectors")),
        promise="Both leaves say so; limits are kept, and nothing is raised below them.",
        faults=(Added(make=second_claim, touch=_pb(LEAF, "rack-b")),),
    ),
    Scene(
        name="parents-in-a-circle", fast=True, group="objects", hold_s=6, cut=CUT,
        expects=(say.not_ready("hall-1", "InvalidTree"),),
        promise="They are told so, and nobody else is touched.",
        faults=(Added(make=circle, touch=_pb("hall-1", "hall-2")),),
    ),
    Scene(
        name="extreme-budgets", group="objects", hold_s=6, cut=CUT, may_be_infeasible=True,
        promise="Watts beyond every bound are told in their own status; the fleet is governed on.",
        faults=(Added(make=extremes, touch=_pb("big", "small", "tiny")),),
    ),
    Scene(
        name="five-hundred-budgets", group="objects", hold_s=10, cut=CUT, recovery_s=60, paired=False, alone=True,
        promise="A cut beside 500 other trees is obeyed within its grace.",
        faults=(Added(make=five_hundred, touch=_pb("junk")),),
    ),
    Scene(
        name="two-thousand-malformed-objects", group="objects", hold_s=4, cut=CUT, recovery_s=60, paired=False,
        may_be_infeasible=True, alone=True,
        promise="The API server refuses most; whatever gets through gets a condition, and harms nobody.",
        faults=(Malformed(touch=_pb("junk")),),
    ),
    Scene(
        name="lease-renewed-in-year-0", fast=True, group="objects", hold_s=6, cut=CUT,
        promise="A Lease that no calendar holds is no proof of life; nobody ends because of it.",
        faults=(LeaseSpoiled(node=BUSY, touch=(f"lease:{BUSY}",)),),
    ),
    Scene(
        name="lease-renewed-in-year-9999", group="objects", hold_s=6, cut=CUT,
        promise="The same in the far future.",
        faults=(LeaseSpoiled(node=BUSY, renew_time="9999-12-31T23:59:59.999999Z", touch=(f"lease:{BUSY}",)),),
    ),
    *(
        Scene(
            name=f"forged-status-{name}", group="objects", hold_s=5, cut=CUT,
            promise="A status that cannot be true frees nothing; the agent's own word heals it.",
            faults=(StatusForged(node=BUSY, forge=forge, touch=(f"agent:{BUSY}", f"np:{BUSY}")),),
        )
        for name, forge in (
            ("min-above-max", min_above_max),
            ("one-uuid-eight-times", one_uuid),
            ("without-gpus", nothing),
            ("limits-of-1-watt", all_acknowledged_low),
        )
    ),
    Scene(
        name="nodes-without-an-agent", group="objects", hold_s=8, paired=False, may_be_infeasible=True,
        expects=(say.no_agent("rack-a2"),), recovery_s=60,
        promise="They count at what is declared for them, and the leaf says that they have no agent.",
        faults=(NodesWithoutAgent(rack="a2", touch=_pb(LEAF)),),
    ),
    Scene(
        name="limits-in-a-flurry", group="limits", hold_s=2, paired=False,
        promise="60 limits in 12 s: each raise at once, each cut after its grace.",
        faults=(LimitsInFlurry(budgets=("rack-a1", "rack-a2"), touch=_pb(*OTHER, CUT)),),
    ),
)  # fmt: skip
