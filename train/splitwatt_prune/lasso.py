"""Group lasso: the penalty that empties channels, with its weight found once, from a ratio, at the first iteration.

    L = CE(W) + lambda * G(W),   G = sum of ||w_g|| over all groups,   lambda = ratio * CE_0 / ((1 - ratio) * G_0)

so that lambda*G / (CE + lambda*G) = ratio at step 0 (PruneTrain; the formula is its authors' code's). Two modes:

- `subgradient`, the paper's: `(ce + lasso.penalty(ce)).backward()`. Weights of an emptied group tremble around zero, by about
  lr*lambda/((1 - momentum)*sqrt(size)), and fall below the threshold only once the learning rate has.
- `prox`: the penalty is taken after the optimizer's step: `w_g *= max(0, 1 - lr*lambda/(1 - momentum)/||w_g||)`. It gives exact
  zeros from early on; 1/(1 - momentum) is what momentum makes of a constant gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from splitwatt_prune import groups as grouping
from splitwatt_prune import spaces

EPSILON: Final = 1e-8
"""Under each norm's root, as the authors have it: the gradient at zero is then zero, and no division fails."""
Mode = Literal["prox", "subgradient"]


class GroupLasso:
    """The penalty over a model's channels. `model`: plain, not its DDP wrapper.

    Raises ValueError on a ratio outside (0, 1), an unknown mode, or a model without a channel that may be cut.
    """

    def __init__(self, model: nn.Module, ratio: float = 0.2, mode: Mode = "prox") -> None:
        if not 0.0 < ratio < 1.0:
            raise ValueError(f"ratio is the penalty's share of the loss at the first step, between 0 and 1, not {ratio}")
        if mode not in ("prox", "subgradient"):
            raise ValueError(f"mode is 'prox' or 'subgradient', not {mode!r}")
        self.ratio, self.mode = ratio, mode
        self.weight: float | None = None
        """lambda; None before the first iteration."""
        self.shrink_budget = 0.0
        """Sum over steps of lr*lambda/(1 - momentum): by how much the norm of a group that gets no other gradient can fall."""
        self.refresh(model)

    def refresh(self, model: nn.Module) -> None:
        """Reads the model's groups anew: after each reconfiguration, for its parameters are other ones then."""
        graph = spaces.read(model)
        self._groups = grouping.of_graph(graph)
        if not self._groups:
            reasons = "; ".join(sorted({space.whole for space in graph.spaces if space.whole}))
            raise ValueError(f"no channel of {type(model).__name__} may be cut ({reasons}): there is nothing to prune")

    def norm(self) -> Tensor:
        """G(W), a scalar with gradient."""
        return torch.stack([(each.view().square().sum(dim=1) + EPSILON).sqrt().sum() for each in self._groups]).sum()

    def fix(self, loss: float) -> float:
        """lambda, found from `loss` (the first iteration's, over all ranks) unless it is known. Raises ValueError."""
        if self.weight is None:
            with torch.no_grad():
                norm = float(self.norm())
            if not (math.isfinite(loss) and loss > 0 and norm > 0):
                raise ValueError(f"the first loss must be a positive number, not {loss}: lambda is a share of it")
            self.weight = self.ratio * loss / ((1.0 - self.ratio) * norm)
        return self.weight

    def penalty(self, loss: Tensor | float) -> Tensor:
        """lambda*G to add to the loss in mode `subgradient`; in mode `prox`, a zero. The first call fixes lambda."""
        weight = self.fix(float(loss.detach()) if isinstance(loss, Tensor) else loss)
        if self.mode == "subgradient":
            return weight * self.norm()
        return self._groups[0].weight.new_zeros(())

    @torch.no_grad()
    def step(self, optimizer: Optimizer) -> None:
        """After `optimizer.step()`: the proximal step in mode `prox`, and the count of the shrink budget in both."""
        if self.weight is None:
            raise ValueError("the first loss is not known yet: call penalty(loss) before step(optimizer)")
        pull = {id(parameter): _pull(group) * self.weight for group in optimizer.param_groups for parameter in group["params"]}
        self.shrink_budget += max(pull[id(each.weight)] for each in self._groups)
        if self.mode == "subgradient":
            return
        for each in self._groups:
            norms = each.view().square().sum(dim=1).sqrt()
            factors = (1.0 - pull[id(each.weight)] / norms.clamp(min=1e-30)).clamp(min=0.0)
            each.weight.mul_(each.broadcast(factors))

    def state_dict(self) -> Mapping[str, Any]:
        return {"ratio": self.ratio, "mode": self.mode, "weight": self.weight, "shrink_budget": self.shrink_budget}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.ratio, self.mode = float(state["ratio"]), state["mode"]
        self.weight = None if state["weight"] is None else float(state["weight"])
        self.shrink_budget = float(state["shrink_budget"])

    def shapes(self) -> Iterator[tuple[str, int, int]]:
        """(layer, axis, channels) of every set of groups."""
        return ((each.module, each.axis, each.view().shape[0]) for each in self._groups)


def _pull(group: Mapping[str, Any]) -> float:
    """lr/(1 - momentum) of a parameter group; lr where an optimizer has no momentum that adds up (Adam divides it out)."""
    momentum = float(group.get("momentum") or 0.0) * (1.0 - float(group.get("dampening") or 0.0))
    return float(group["lr"]) / (1.0 - momentum)
