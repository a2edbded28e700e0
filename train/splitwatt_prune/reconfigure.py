"""Reconfiguration: every few epochs, channels whose weights are all below the threshold are cut out of the running model.

A channel stays when any layer that makes or takes it still uses it (channel union), so the function hardly changes. A residual
path with a dead layer goes as a whole. Weights, batch norms and the optimizer's state become smaller together; all ranks cut the
same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from splitwatt_prune import groups, ranks, spaces
from splitwatt_prune.cost import Cost, measure
from splitwatt_prune.paths import dead_path, remove
from splitwatt_prune.surgery import Surgeon, widths

THRESHOLD: Final = 1e-4
"""On max |w| of a group (PruneTrain). At 1e-3 logits move by 0.04 to 0.10."""
INTERVAL_EPOCHS: Final = 5
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """What one reconfiguration did. `max_logit_delta`: on the probe, in evaluation; None without one."""

    generation: int
    epoch: int
    before: Cost
    after: Cost
    widths: Mapping[str, list[int]]
    cut_channels: int
    removed_paths: tuple[tuple[str, ...], ...] = ()
    kept_alive: Mapping[str, str] = field(default_factory=dict)
    """Space -> why its strongest channel stayed though all were dead."""
    ranks_agreed: bool = True
    max_logit_delta: float | None = None

    @property
    def flops_ratio(self) -> float:
        """Training FLOPs per sample, against before this change."""
        return self.after.training_flops / self.before.training_flops


class Reconfigurer:
    """Cuts a plain model (not its DDP wrapper: `ranks.plain`) and its optimizer in place.

    `sample`: inputs [n, ...] of training's shape, by which cost and logits are measured. Raises NotImplementedError for
    `residual="gating"`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        sample: Tensor,
        *,
        threshold: float = THRESHOLD,
        interval: int = INTERVAL_EPOCHS,
        residual: Literal["union", "gating"] = "union",
    ) -> None:
        if residual == "gating":
            raise NotImplementedError(
                "channel gating selects and scatters channels around every residual addition: fewer FLOPs on paper, more memory "
                "traffic and slower steps than channel union on GPUs. Use residual='union'"
            )
        if residual != "union":
            raise ValueError(f"residual is 'union', not {residual!r}")
        if not threshold > 0 or interval < 1:
            raise ValueError(f"threshold must be positive and interval 1 or more, not {threshold} and {interval}")
        self._model, self._optimizer, self._sample = ranks.plain(model), optimizer, sample
        self.threshold, self.interval = threshold, interval
        self.generation = 0
        self.cost = measure(self._model, sample)

    def maybe(self, epoch: int) -> Change | None:
        """After epoch `epoch` (the first is 1): a change, when it is time and something can be cut."""
        return self.now(epoch) if epoch > 0 and epoch % self.interval == 0 else None

    def now(self, epoch: int = 0) -> Change | None:
        """A change, or None where nothing can be cut. The DDP wrapper is the caller's to make anew, and the lasso to refresh."""
        before, logits = self.cost, self._logits()
        removed, agreed = self._remove_dead_paths()
        cut, kept_alive, same = self._cut()
        if not cut and not removed:
            return None
        shapes = widths(self._model)
        ranks.check_equal(shapes)
        self.cost = measure(self._model, self._sample)
        self.generation += 1
        return Change(
            generation=self.generation,
            epoch=epoch,
            before=before,
            after=self.cost,
            widths=shapes,
            cut_channels=cut,
            removed_paths=removed,
            kept_alive=kept_alive,
            ranks_agreed=agreed and same,
            max_logit_delta=float((self._logits() - logits).abs().max()),
        )

    @torch.no_grad()
    def _logits(self) -> Tensor:
        training = self._model.training
        self._model.eval()
        logits: Tensor = self._model(self._sample)
        self._model.train(training)
        return logits

    def _remove_dead_paths(self) -> tuple[tuple[tuple[str, ...], ...], bool]:
        removed: list[tuple[str, ...]] = []
        agreed = True
        while True:
            graph = spaces.read(self._model)
            mine = {"layer": next((name for name in self._dead_layers(graph)), "")}
            told, same = ranks.from_rank_0(mine)
            agreed = agreed and same
            if not told["layer"]:
                return tuple(removed), agreed
            path = dead_path(graph, told["layer"])
            if isinstance(path, str):
                raise ranks.RanksDifferError(f"rank 0 removes the path of {told['layer']}, which stays here: {path}")
            remove(self._model, path, self._optimizer)
            removed.append(path.modules)

    def _dead_layers(self, graph: spaces.Graph) -> Sequence[str]:
        """Layers without a live weight whose residual path can go."""
        layers = [name for name, module in graph.modules.items() if spaces.is_layer(module)]
        dead = [name for name in layers if float(graph.modules[name].weight.detach().abs().max()) < self.threshold]
        return [name for name in dead if not isinstance(dead_path(graph, name), str)]

    def _cut(self) -> tuple[int, Mapping[str, str], bool]:
        """(channels cut, spaces kept alive, whether ranks agreed)."""
        graph = spaces.read(self._model)
        kept_alive: dict[str, str] = {}
        mine: dict[str, list[int]] = {}
        for at, space in enumerate(graph.spaces):
            if space.whole or not space.size or not (space.writers or space.readers):
                continue
            keep = groups.alive(graph, space, self.threshold)
            if not bool(keep.any()):
                keep[groups.strength(graph, space).argmax()] = True
                kept_alive[space.name] = self._why_alive(graph, space)
            if not bool(keep.all()):
                mine[str(at)] = keep.nonzero().flatten().tolist()
        told, same = ranks.from_rank_0(mine)
        if not same:
            _LOG.warning("ranks found different channels to cut; rank 0's are cut everywhere")
        cut = sum(graph.spaces[int(at)].size - len(keep) for at, keep in told.items())
        if cut:
            self._slice(graph, {int(at): keep for at, keep in told.items()})
        return cut, kept_alive, same

    @staticmethod
    def _why_alive(graph: spaces.Graph, space: spaces.Space) -> str:
        reasons = [dead_path(graph, each.module) for each in space.readers]
        return "; ".join(each for each in reasons if isinstance(each, str)) or "its path has other live layers"

    def _slice(self, graph: spaces.Graph, keep: Mapping[int, Sequence[int]]) -> None:
        rows: dict[str, Tensor] = {}
        columns: dict[str, Tensor] = {}
        for at, channels in keep.items():
            space = graph.spaces[at]
            index = torch.tensor(channels, device=self._sample.device)
            rows |= dict.fromkeys((*space.writers, *space.followers), index)
            for each in space.readers:
                wide = index.unsqueeze(1) * each.columns + torch.arange(each.columns, device=index.device)
                columns[each.module] = wide.flatten()
        surgeon = Surgeon(self._model, self._optimizer)
        for name in sorted(rows.keys() | columns.keys()):
            surgeon.slice(name, rows=rows.get(name), columns=columns.get(name))
