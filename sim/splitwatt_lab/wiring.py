"""What hangs behind which power feed: the judge's own truth, as the machine room was wired at the start.

Theory: a wire does not move because an object in an API server was edited, deleted or written wrongly. So the feeds come
from whoever built the site; a PowerBudget only says how many watts the feed that it was made for may carry, and what is
declared of the rest behind it. Protected: every node hangs on exactly one feed and counts in it and in each feed above
once; feeds form a forest, so a walk up always ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from splitwatt_core.budget.tree import LIMIT_GRACE_S
from splitwatt_nvml_twin.plant import RackPlant

from splitwatt_lab.errors import LabError


@dataclass(frozen=True, slots=True)
class Feed:
    """One feed: the name of the budget that was made for it, the feed above, and the nodes that hang on it directly."""

    budget: str
    parent: str | None = None
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Declared:
    """What a PowerBudget says of its feed. `adopted`: the operator says that its limit is in force."""

    name: str
    limit_w: int
    grace_s: float
    overhead_percent: int
    non_gpu_w_per_node: int
    fixed_w: int
    adopted: bool
    status: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NodeLook:
    """One node's GPUs at one moment, watts summed over them."""

    power_w: float
    enforced_w: float
    enforced_each_w: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FeedWatts:
    """Watts at a feed's meter: what is drawn, and what may be drawn with every GPU at its enforced limit (as in I1)."""

    true_w: float
    capped_w: float


def declared(obj: Mapping[str, Any]) -> Declared:
    """A PowerBudget as the API server returns it."""
    spec, status = obj["spec"], obj.get("status") or {}
    return Declared(
        name=obj["metadata"]["name"],
        limit_w=spec["limitWatts"],
        grace_s=float(spec.get("limitGraceSeconds", LIMIT_GRACE_S)),
        overhead_percent=spec.get("overheadPercent", 0),
        non_gpu_w_per_node=spec.get("nonGpuWattsPerNode", 0),
        fixed_w=spec.get("fixedWatts", 0),
        adopted=status.get("adoptionMilliseconds") is not None,
        status=status,
    )


class Wiring:
    """All feeds of a site. Raises LabError where they are no forest or a node hangs on two."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self.feeds: dict[str, Feed] = {}
        owner: dict[str, str] = {}
        for feed in feeds:
            if feed.budget in self.feeds:
                raise LabError(f"the feed {feed.budget} is wired twice; name each feed once")
            self.feeds[feed.budget] = feed
            for node in feed.nodes:
                if owner.setdefault(node, feed.budget) != feed.budget:
                    raise LabError(f"node {node} hangs on {owner[node]} and on {feed.budget}; a node has one feed")
        self._above = {name: self._way_up(name) for name in self.feeds}

    def _way_up(self, name: str) -> tuple[str, ...]:
        """The feed and all above it."""
        way: list[str] = []
        at: str | None = name
        while at is not None:
            if at in way:
                raise LabError(f"the feeds {' -> '.join([*way, at])} close a circle; wires do not")
            if at not in self.feeds:
                raise LabError(f"{way[-1]} hangs on the feed {at}, which is not there")
            way.append(at)
            at = self.feeds[at].parent
        return tuple(way)

    def depth(self, name: str) -> int:
        """Feeds above this one."""
        return len(self._above[name]) - 1

    def watts(self, looks: Mapping[str, NodeLook], budgets: Mapping[str, Declared], plant: RackPlant) -> Mapping[str, FeedWatts]:
        """Each feed's watts; a feed above carries its own fixed watts and everything below it. `budgets` by feed, as last
        seen: an object that is gone takes nothing with it."""
        true_w, capped_w = dict.fromkeys(self.feeds, 0.0), dict.fromkeys(self.feeds, 0.0)
        for name, feed in self.feeds.items():
            says = budgets.get(name)
            own_true, own_capped = 0.0, 0.0 if says is None else float(says.fixed_w)
            if feed.nodes:
                on = [looks[node] for node in feed.nodes]
                own_true = plant.true_w([look.power_w for look in on])
                overhead, rest_w = (0, 0) if says is None else (says.overhead_percent, says.non_gpu_w_per_node)
                own_capped += sum(look.enforced_w for look in on) * (1 + overhead / 100) + rest_w * len(on)
            for above in self._above[name]:
                true_w[above] += own_true
                capped_w[above] += own_capped
        return {name: FeedWatts(true_w[name], capped_w[name]) for name in self.feeds}
