"""One decode step of a rank: how many requests fit its memory, and how long the step takes. All bytes are of one rank.

    requests = (share * memory - (weights - offloaded) - activations) / (context * KV bytes of a token)
    step     = max(memory time, compute time), with offloaded weights also their time on the link

Memory time is the weights that stayed and the KV cache of all requests over 0.8 of the memory's bandwidth. Offloaded weights
that are fetched ahead overlap with it (`Link.AHEAD`, vLLM's prefetch); read in place, they do not (`Link.SERIAL`, vLLM's
`--cpu-offload-gb`). Truth lies between: both are bounds, and neither is a promise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

MEMORY_SHARE: Final = 0.92
"""Of a GPU's memory that the engine takes: vLLM 0.33's default."""
ACTIVATION_BYTES: Final = 3e9
"""Kept free for activations and graphs (unconfirmed; the published points are met with it)."""
BANDWIDTH_SHARE: Final = 0.8
"""Of the nominal memory bandwidth that a decode step reaches."""
COMPUTE_SHARE: Final = 0.6
PREFILL_COMPUTE_SHARE: Final = 0.5


class MemoryPlanError(ValueError):
    """What no plan can be made of; the message is one sentence that says what to change."""


class Link(StrEnum):
    AHEAD = "ahead"
    SERIAL = "serial"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One GPU of a tensor-parallel group. `link_bytes_per_s`: from host memory, as measured. `flops_per_s`: dense, at the type
    the model computes in."""

    memory_bytes: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    flops_per_s: float
    tdp_w: float

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "memory_bytes_per_s", "link_bytes_per_s", "flops_per_s", "tdp_w"):
            if not 0 < getattr(self, name) < float("inf"):
                raise MemoryPlanError(f"{name} must be a number above 0, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLoad:
    """A model's part on one rank, and what is asked of it. `expert_share`: of weights that lie in experts, of which
    `experts_per_token` of `experts` serve a token. `step_limit_s`: the TPOT that must hold; None is any. `max_requests`:
    more are never there at once."""

    weights_bytes: float
    kv_bytes_per_token: float
    layers: int
    parameters: float
    context_tokens: int
    step_limit_s: float | None = None
    max_requests: int | None = None
    experts: int = 1
    experts_per_token: int = 1

    def __post_init__(self) -> None:
        for name in ("weights_bytes", "kv_bytes_per_token", "layers", "parameters", "context_tokens"):
            if not 0 < getattr(self, name) < float("inf"):
                raise MemoryPlanError(f"{name} must be a number above 0, not {getattr(self, name)}")
        if not 1 <= self.experts_per_token <= self.experts:
            raise MemoryPlanError("experts per token must lie from 1 to the count of experts")

    def touched(self, requests: int) -> float:
        """Share of the weights that a step reads, all experts alike: 1 of a dense model."""
        return 1 - (1 - self.experts_per_token / self.experts) ** requests if self.experts > 1 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`link_s`: of weights from the host; `bound`: memory, link or compute, whichever is longest."""

    requests: int
    memory_s: float
    link_s: float
    compute_s: float
    step_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.requests / self.step_s if self.requests else 0.0

    @property
    def bound(self) -> str:
        longest = max(self.memory_s, self.link_s, self.compute_s)
        return "memory" if longest == self.memory_s else "link" if longest == self.link_s else "compute"


def requests_that_fit(rank: Rank, load: DecodeLoad, offloaded_bytes: float = 0.0) -> int:
    """Requests of the whole context whose KV cache has room beside the weights that stayed; 0 where the weights do not fit."""
    room = MEMORY_SHARE * rank.memory_bytes - (load.weights_bytes - offloaded_bytes) - ACTIVATION_BYTES
    found = max(0, int(room // (load.context_tokens * load.kv_bytes_per_token)))
    return found if load.max_requests is None else min(found, load.max_requests)


def step_of(
    rank: Rank, load: DecodeLoad, requests: int, *, offloaded_bytes: float = 0.0, link: Link = Link.AHEAD, slower: float = 1.0
) -> Step:
    """`slower`: how much a power cap stretches what the GPU itself does, 1 or more; a link does not hear of it. Raises
    MemoryPlanError where more weights are offloaded than there are."""
    if not 0 <= offloaded_bytes <= load.weights_bytes:
        raise MemoryPlanError(f"of {load.weights_bytes:g} bytes of weights {offloaded_bytes:g} cannot be offloaded")
    touched = load.touched(requests)
    kv_bytes = requests * load.context_tokens * load.kv_bytes_per_token
    read = (load.weights_bytes - offloaded_bytes) * touched + kv_bytes
    memory_s = slower * read / (BANDWIDTH_SHARE * rank.memory_bytes_per_s)
    link_s = offloaded_bytes * touched / rank.link_bytes_per_s
    compute_s = slower * 2 * load.parameters * requests / (COMPUTE_SHARE * rank.flops_per_s)
    here_s = max(memory_s, compute_s)
    step_s = max(here_s, link_s) if link is Link.AHEAD else here_s + link_s
    return Step(requests=requests, memory_s=memory_s, link_s=link_s, compute_s=compute_s, step_s=step_s)


def fullest_step(
    rank: Rank, load: DecodeLoad, *, offloaded_bytes: float = 0.0, link: Link = Link.AHEAD, slower: float = 1.0
) -> Step:
    """With as many requests as memory and TPOT allow; none where not even one keeps the TPOT."""

    def of(requests: int) -> Step:
        return step_of(rank, load, requests, offloaded_bytes=offloaded_bytes, link=link, slower=slower)

    most = requests_that_fit(rank, load, offloaded_bytes)
    limit_s = load.step_limit_s
    return of(most if limit_s is None else _largest(most, lambda requests: of(requests).step_s <= limit_s))


def _largest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest count up to `most` that holds, 0 where none does; what holds for a count holds for each smaller one."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def with_kv(load: DecodeLoad, ratio: float) -> DecodeLoad:
    """The same load with a KV cache `ratio` times smaller."""
    return replace(load, kv_bytes_per_token=load.kv_bytes_per_token / ratio)


def with_weights(load: DecodeLoad, share: float) -> DecodeLoad:
    """The same load with weights that take `share` of their bytes."""
    return replace(load, weights_bytes=load.weights_bytes * share)


def best_offload_bytes(rank: Rank, load: DecodeLoad, *, margin: float = 0.9, slower: float = 1.0) -> float:
    """Weights to fetch ahead: what the link brings while the memory is read. `margin` keeps off the cliff behind it, where
    every byte more costs its whole time on the link."""
    offloaded = 0.0
    for _ in range(64):  # more room, more requests, a longer step: it settles within a few rounds
        step = fullest_step(rank, load, offloaded_bytes=offloaded, slower=slower)
        wanted = min(margin * rank.link_bytes_per_s * max(step.memory_s, step.compute_s), load.weights_bytes)
        if abs(wanted - offloaded) <= 1e6:
            break
        offloaded = wanted
    return offloaded


def prefix_times_s(rank: Rank, load: DecodeLoad, tokens: int) -> tuple[float, float]:
    """Time to reload a prefix's KV cache from the host, and to compute it again."""
    compute_s = 2 * load.parameters * tokens / (PREFILL_COMPUTE_SHARE * rank.flops_per_s)
    return tokens * load.kv_bytes_per_token / rank.link_bytes_per_s, compute_s
