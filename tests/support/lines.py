"""One PowerBudget of `support.world` as its owner keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from splitwatt_core.budget.tree import BudgetSpec, Elastic, MeterSpec, Selector
from splitwatt_core.protocol.contract import Mode

if TYPE_CHECKING:
    from support.world import World


@dataclass(slots=True)
class Line:
    """`birth` counts how often it was created. A leaf selects the rack of its name, or `rack`. `left_out`: the parent that a
    template forgot; the cable is where it was. `max_nodes`: of an elastic leaf."""

    parent: str | None
    limit_w: int
    leaf: bool = False
    mode: Mode = Mode.STRICT
    exists: bool = True
    birth: int = 1
    reserve_w: int = 0
    fixed_w: int = 0
    overhead_percent: int = 0
    non_gpu_w: int = 0
    settle_ms: int = 500
    metered: bool = True
    rack: str = ""
    left_out: str | None = None
    confirmed_uid: str = ""
    max_nodes: int = 0

    @property
    def loss_factor(self) -> float:
        return 1.0 + self.overhead_percent / 100.0

    def selects(self, name: str, label: str | None) -> bool:
        return self.exists and self.leaf and label is not None and label == (self.rack or name)

    def spec(self, name: str, world: World) -> BudgetSpec:
        """What all see of it under this name."""
        return BudgetSpec(
            name=name,
            uid=f"{name}-{self.birth}",
            generation=1,
            limit_w=self.limit_w,
            parent=self.parent,
            mode=self.mode,
            policy=world.policy,
            reserve_w=self.reserve_w,
            selector=Selector({"rack": self.rack or name}) if self.leaf else None,
            non_gpu_w_per_node=self.non_gpu_w,
            unmanaged_w_per_node=world.flat_w(self) if self.leaf else 0,
            fixed_w=self.fixed_w,
            overhead_percent=self.overhead_percent,
            meter=MeterSpec("m") if self.metered else None,
            settle_ms=self.settle_ms,
            confirmed_uid=self.confirmed_uid,
            elastic=Elastic(self.max_nodes, world.gpus_per_node) if self.max_nodes else None,
        )
