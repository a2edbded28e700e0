"""The judge of a simulated run: the truth beside the limit in force, second by second.

It looks from outside: true power from the engine, limits from the GPUs, charges from the ledger. Sums are those of I1,

    sum at the meter = GPU watts * (1 + losses) + watts beside the GPUs + fixed watts,

for caps and charges with what the budget declares, for true power with what the simulated servers have. A second counts
against caps or charge if in any moment of it their sum was above the limit in force of that moment, and against draw if its
mean was above the mean of the limit in force.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from splitwatt_core.budget.facts import BudgetReport
from splitwatt_core.budget.tree import BudgetSpec, build_tree
from splitwatt_core.columns import TOLERANCE_W
from splitwatt_truth.breaker import step_breaker

from splitwatt_sim.power.setup import Server
from splitwatt_sim.servers.kinds import GPUS, LOSSES, SERVER_REST_W

FloatArray = NDArray[np.float64]


class Lines:
    """B budgets over M servers as arrays, in the order of `names`: parents before children."""

    def __init__(self, budgets: Sequence[BudgetSpec], servers: Sequence[Server]) -> None:
        by_name = {budget.name: budget for budget in budgets}
        tree = build_tree(by_name)
        self.names: tuple[str, ...] = tree.order
        index = {name: b for b, name in enumerate(self.names)}
        self._counts = np.zeros((len(self.names), len(servers)))
        self._fixed_w = np.zeros(len(self.names))
        self._factor = np.array([by_name[server.leaf].loss_factor for server in servers])
        self._rest_w = np.array([float(by_name[server.leaf].non_gpu_w_per_node) for server in servers])
        for m, server in enumerate(servers):
            self._counts[[index[name] for name in tree.chain(server.leaf)], m] = 1.0
        for name in self.names:
            self._fixed_w[[index[up] for up in tree.chain(name)]] += by_name[name].fixed_w

    def declared_w(self, gpus_w: FloatArray) -> FloatArray:
        """float64[B]: what I1 counts when the GPUs of each server have float64[M] watts."""
        return np.asarray(self._counts @ (self._factor * gpus_w + self._rest_w) + self._fixed_w)

    def true_w(self, servers_w: FloatArray) -> FloatArray:
        """float64[B]: what flows at each meter when servers draw float64[M] before losses."""
        return np.asarray(self._counts @ (servers_w + LOSSES * (servers_w - SERVER_REST_W)) + self._fixed_w)


@dataclass(frozen=True, slots=True)
class PowerSeries:
    """S seconds of a run. float64[B, S]: power_w true means, limit_w means of the limit in force, charge_w and caps_w the
    most of the second. charge_over, caps_over bool[B, S]. cap_w float64[M, S]: a GPU's cap in each server, at the second's
    end. theta, pessimistic_theta float64[B, S]: the breaker's, with the limit in force as its rating."""

    names: tuple[str, ...]
    power_w: FloatArray
    limit_w: FloatArray
    charge_w: FloatArray
    caps_w: FloatArray
    charge_over: NDArray[np.bool_]
    caps_over: NDArray[np.bool_]
    cap_w: FloatArray
    theta: FloatArray
    pessimistic_theta: FloatArray

    @property
    def power_over(self) -> NDArray[np.bool_]:
        """bool[B, S]."""
        return np.asarray(self.power_w > self.limit_w + TOLERANCE_W)


class PowerJudge:
    """`look` after every moment, `end_second` after the last one of each second."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._limit_w = np.zeros(len(lines.names))
        self.charge_w = np.zeros(len(lines.names))
        self.caps_w = np.zeros(len(lines.names))
        self._most: dict[str, FloatArray] = {}
        self._over: dict[str, NDArray[np.bool_]] = {}
        self._rows: dict[str, list[FloatArray]] = {name: [] for name in ("power", "limit", "charge", "caps", "cap")}
        self._flags: dict[str, list[NDArray[np.bool_]]] = {"charge": [], "caps": []}
        self._begins = True
        self._looked_s = 0.0
        self._seen_w = self._limit_w
        self._limit_ws = self._limit_w

    def start(self) -> None:
        """The first second begins with the next look; what was seen before does not count."""
        self._begins = True

    def limits(self, reports: Mapping[str, BudgetReport]) -> None:
        """What the keeper reports as in force."""
        for b, name in enumerate(self._lines.names):
            self._limit_w[b] = reports[name].limit.in_force_w

    def look(self, now_s: float, *, charges_w: FloatArray, management_w: FloatArray) -> None:
        """float64[M] each: the GPUs' charges and management limits in every server, in this moment."""
        self.charge_w, self.caps_w = self._lines.declared_w(charges_w), self._lines.declared_w(management_w)
        sums = {"charge": self.charge_w, "caps": self.caps_w}
        over = {name: sum_w > self._limit_w + TOLERANCE_W for name, sum_w in sums.items()}
        if self._begins:
            self._begins, self._most, self._over = False, sums, over
            self._limit_ws = np.zeros(len(self._limit_w))
            self._looked_s, self._seen_w = now_s, self._limit_w.copy()
            return
        self._pass(now_s)
        for name, sum_w in sums.items():
            self._most[name] = np.maximum(self._most[name], sum_w)
            self._over[name] = self._over[name] | over[name]

    def _pass(self, now_s: float) -> None:
        """The limit of the last look was in force until now."""
        self._limit_ws = self._limit_ws + self._seen_w * (now_s - self._looked_s)
        self._looked_s, self._seen_w = now_s, self._limit_w.copy()

    def end_second(self, now_s: float, *, servers_w: FloatArray, management_w: FloatArray) -> FloatArray:
        """A second is over, and the next one begins with the next look; what each meter truly showed, float64[B]."""
        power_w = self._lines.true_w(servers_w)
        self._pass(now_s)
        now = {"power": power_w, "limit": self._limit_ws, "cap": management_w / GPUS, **self._most}
        for name, row in now.items():
            self._rows[name].append(row)
        for name, over in self._over.items():
            self._flags[name].append(over)
        self._begins = True
        return power_w

    def series(self, *, k_s: float, pessimistic_k_s: float) -> PowerSeries:
        rows = {name: np.array(row).T for name, row in self._rows.items()}
        rows["limit"] = np.round(rows["limit"], 6)  # a limit that stands is one number, not a sum of parts of it
        load = rows["power"] / rows["limit"]
        return PowerSeries(
            names=self._lines.names,
            power_w=rows["power"],
            limit_w=rows["limit"],
            charge_w=rows["charge"],
            caps_w=rows["caps"],
            charge_over=np.array(self._flags["charge"]).T,
            caps_over=np.array(self._flags["caps"]).T,
            cap_w=rows["cap"],
            theta=_thetas(load, k_s),
            pessimistic_theta=_thetas(load, pessimistic_k_s),
        )


def _thetas(load: FloatArray, k_s: float) -> FloatArray:
    """float64[B, S], of one-second means."""
    thetas = np.zeros_like(load)
    for b in range(len(load)):
        theta = 0.0
        for s, ratio in enumerate(load[b].tolist()):
            theta = thetas[b, s] = step_breaker(theta, load_ratio=ratio, elapsed_s=1.0, k_s=k_s)
    return thetas
