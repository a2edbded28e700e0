"""Dynamic mini-batch adjustment: memory that a reconfiguration freed is refilled with samples, and fewer steps make an epoch.

The learning rate grows by the same factor (the linear rule). Fewer steps are fewer all-reduces. The paper has it; its authors'
public code does not, so the rounding here is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from splitwatt_prune.cost import Cost


@dataclass(frozen=True)
class MiniBatch:
    """Samples a step on one accelerator, and by what the learning rate is multiplied for it.

    `memory_bytes`: what a step may take. `multiple`: sizes are multiples of it. `most`: largest size, 0 for no bound but memory.
    """

    size: int
    memory_bytes: int
    multiple: int
    lr_factor: float = 1.0
    most: int = 0

    @classmethod
    def of(cls, cost: Cost, size: int, *, most: int = 0) -> MiniBatch:
        """The first one: what it takes is what later ones may take. Raises ValueError on a size below 1."""
        if size < 1:
            raise ValueError(f"a mini-batch has one sample or more, not {size}")
        return cls(size, cost.memory_bytes(size), max(1, size // 4), most=most)

    def refilled(self, cost: Cost) -> MiniBatch:
        """For a model of this cost; never smaller than before, for a pruned model never needs more."""
        room = (self.memory_bytes - cost.static_bytes) // max(1, cost.activation_bytes)
        fits = room // self.multiple * self.multiple
        size = max(self.size, min(fits, self.most) if self.most else fits)
        return replace(self, size=size, lr_factor=self.lr_factor * size / self.size)
