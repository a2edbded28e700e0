"""How each event of the panels' model is made on a real site, and which of them may happen together."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from splitwatt_nvml_twin.faults import Fault as GpuFault
from splitwatt_panels.model import Event

from splitwatt_lab.faults.ground import Ground
from splitwatt_lab.faults.meters import MeterBroken
from splitwatt_lab.faults.nodes import GpuBroken, SecondWriter
from splitwatt_lab.faults.objects import Patched
from splitwatt_lab.faults.observer import API
from splitwatt_lab.faults.processes import Killed
from splitwatt_lab.faults.scene import FaultBase, Injector

OPERATOR_ROLE: Final = "/apis/rbac.authorization.k8s.io/v1/clusterroles/splitwatt-operator"
CUT: Final = "rack-a1"
TOO_LOW_W: Final = 1500
"""Less than fans, CPUs and idle GPUs of a rack draw."""
FOREIGN_W: Final = 350


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCut(FaultBase):
    """The driver refuses every limit of a GPU, and then its rack is cut."""

    broken: GpuBroken
    budget: str

    def lay(self, ground: Ground, rng: random.Random) -> None:
        self.broken.lay(ground, rng)
        ground.cut(self.budget, from_w=ground.judge.latest[self.budget].capped_w)

    def heal(self, ground: Ground) -> None:
        self.broken.heal(ground)
        ground.restore_limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Respecified(FaultBase):
    """An InferenceCluster's spec is changed, and applied as it was when healed."""

    name: str
    spec: Mapping[str, Any]

    def lay(self, ground: Ground, rng: random.Random) -> None:
        namespace = ground.base[self.name]["metadata"]["namespace"]
        ground.patch(f"{API}/namespaces/{namespace}/inferenceclusters/{self.name}", {"spec": dict(self.spec)})

    def heal(self, ground: Ground) -> None:
        ground.apply(ground.base[self.name])


@dataclass(frozen=True, slots=True, kw_only=True)
class RightTaken(FaultBase):
    """The operator's account loses the right to write one resource, and gets it back when healed."""

    resource: str

    def lay(self, ground: Ground, rng: random.Random) -> None:
        rules = ground.site.get(OPERATOR_ROLE)["rules"]
        ground.base[self.resource] = {"kind": "ClusterRole", "rules": json.loads(json.dumps(rules))}
        for rule in rules:
            rule["resources"] = [name for name in rule["resources"] if name != self.resource]
        ground.patch(OPERATOR_ROLE, {"rules": [rule for rule in rules if rule["resources"]]})

    def heal(self, ground: Ground) -> None:
        ground.patch(OPERATOR_ROLE, {"rules": ground.base.pop(self.resource)["rules"]})


MADE: Final[Mapping[Event, Injector]] = {
    Event.LIMIT_TOO_LOW: Patched(name=CUT, spec={"limitWatts": TOO_LOW_W}),
    Event.SETTER_REFUSES: RefusedCut(broken=GpuBroken(node="a1-n2", fault=GpuFault.no_permission), budget=CUT),
    Event.METER_SILENT: MeterBroken(rack="a2", shows={"gone": True}),
    Event.FOREIGN_LIMIT: SecondWriter(node="a2-n1", watts=FOREIGN_W),
    Event.PROMISE_TOO_TIGHT: Respecified(name="chat", spec={"slo": {"ttftP99Milliseconds": 1, "tbtP99Milliseconds": 1}}),
    Event.REPLICAS_TOO_MANY: Respecified(name="summarize", spec={"decode": {"replicas": 3}}),
    Event.RIGHT_TAKEN: RightTaken(resource="powerbudgets/status"),
    Event.NOBODY_REIGNS: Killed(names=("operator",)),
}
TOGETHER: Final[tuple[tuple[Event, ...], ...]] = (
    (Event.LIMIT_TOO_LOW, Event.PROMISE_TOO_TIGHT, Event.REPLICAS_TOO_MANY),
    (Event.SETTER_REFUSES, Event.METER_SILENT, Event.FOREIGN_LIMIT),
    (Event.RIGHT_TAKEN,),
    (Event.NOBODY_REIGNS,),
)
"""In this order; events of one group touch different things, and no alert of one is also of another group."""
