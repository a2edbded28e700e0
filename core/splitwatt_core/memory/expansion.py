"""Which way to more memory a decode pool should take, with the numbers of all of them, also of those that are refused.

A way is *taken*, *too small* (it wins less than `MIN_GAIN`), *no* (it loses), *refused* (it needs a consent, or would do harm) or
*hypothetical* (no engine has it). A step on a link draws 0.28 to 0.4 of a GPU's TDP, so energy has two bounds as speed has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from splitwatt_core.memory.decode import (
    ACTIVATION_BYTES,
    MEMORY_SHARE,
    DecodeLoad,
    Link,
    MemoryPlanError,
    Rank,
    Step,
    best_offload_bytes,
    fullest_step,
    requests_that_fit,
    step_of,
    with_kv,
    with_weights,
)

MIN_GAIN: Final = 0.05
FP8_RATIO: Final = 2.0
LOSSLESS_KV_RATIO: Final = 4 / 3
"""What exponent coding gives bf16 KV caches after Buddy's sectors (docs/memory.md)."""
CODED_WEIGHTS_SHARE: Final = 0.676
"""Of bf16 weights with coded exponents: DFloat11's published 67.6 to 69.5 %, its best."""
LINK_BOUND_TDP: Final = (0.28, 0.4)
"""Draw of a GPU that waits for its link, as a share of its TDP (arXiv:2601.19910, lowest and our upper bound)."""


class MemoryWay(StrEnum):
    NONE = "none"
    FP8_KV = "fp8 KV cache"
    PREFETCH = "weights fetched ahead"
    HOST_KV = "KV tier on the host"
    CODED_WEIGHTS = "coded weights"
    CODED_KV = "coded KV cache"


class Verdict(StrEnum):
    BASE = "Base"
    TAKE = "Take"
    GAIN_TOO_SMALL = "GainTooSmall"
    LOSES = "Loses"
    NEEDS_CONSENT = "NeedsConsent"
    NO_ENGINE = "NoEngine"
    REUSE_ONLY = "ReuseOnly"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOption:
    """One way under one cap. Steps: at best and at worst, the same where no link is used. `gain`: tokens per second at best over
    those without it, less 1. `joules_per_token`: lowest and highest, of this rank. `reason`: the verdict in words."""

    way: MemoryWay
    verdict: Verdict
    reason: str
    best: Step
    worst: Step
    gain: float
    joules_per_token: tuple[float, float]
    offloaded_bytes: float = 0.0

    @property
    def gives_watts(self) -> bool:
        """A pool that waits for its link can do with fewer watts, and the power law may have them."""
        return self.best.bound == "link"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """`lossy_kv`: the owner consents to a KV cache of fewer bits. `cap_w`: of each GPU; `slower`: what it costs a decode step, as
    the pool's power profile says. `draw_w`: what a decode step draws uncapped; None: its cap. `host_bytes`: pinned memory."""

    cap_w: float
    slower: float = 1.0
    draw_w: float | None = None
    lossy_kv: bool = False
    host_bytes: float = float("inf")

    def __post_init__(self) -> None:
        if not self.cap_w > 0 or not self.slower >= 1:
            raise MemoryPlanError(f"a cap lies above 0 W and never speeds up, not {self.cap_w} W and {self.slower}")


def options(rank: Rank, load: DecodeLoad, terms: Terms) -> list[MemoryOption]:
    """All ways, the base first. Raises MemoryPlanError where the weights leave no room for a single request."""
    base = fullest_step(rank, load, slower=terms.slower)
    if base.requests == 0:
        raise MemoryPlanError(
            f"not one request of {load.context_tokens} tokens fits beside {load.weights_bytes / 1e9:.1f} GB of weights, or keeps "
            "the step limit: take more GPUs per replica, a shorter context or a longer step"
        )
    pool = _Pool(rank, terms, base)
    fp8, weights, kv = (
        fullest_step(rank, other, slower=terms.slower)
        for other in (with_kv(load, FP8_RATIO), with_weights(load, CODED_WEIGHTS_SHARE), with_kv(load, LOSSLESS_KV_RATIO))
    )
    offloaded = min(best_offload_bytes(rank, load, slower=terms.slower), terms.host_bytes)
    ahead, serial = (
        fullest_step(rank, load, offloaded_bytes=offloaded, link=link, slower=terms.slower) for link in (Link.AHEAD, Link.SERIAL)
    )
    host = "keeps finished prefixes, and no batch grows by it: it pays where prefixes come again"
    return [
        pool.option(MemoryWay.NONE, Verdict.BASE, "as it is", best=base, worst=base),
        pool.judged(MemoryWay.FP8_KV, fp8, fp8, instead=None if terms.lossy_kv else Verdict.NEEDS_CONSENT),
        pool.judged(MemoryWay.PREFETCH, ahead, serial, offloaded=offloaded),
        pool.option(MemoryWay.HOST_KV, Verdict.REUSE_ONLY, host, best=base, worst=base),
        pool.judged(MemoryWay.CODED_WEIGHTS, weights, weights, instead=Verdict.NO_ENGINE),
        pool.judged(MemoryWay.CODED_KV, kv, kv, instead=Verdict.NO_ENGINE),
    ]


def recommended(found: Sequence[MemoryOption]) -> MemoryOption:
    """The way that may be taken and wins most; else the base."""
    return max((one for one in found if one.verdict in {Verdict.TAKE, Verdict.BASE}), key=lambda one: one.best.tokens_per_s)


@dataclass(frozen=True, slots=True)
class _Pool:
    """What every way is held against."""

    rank: Rank
    terms: Terms
    base: Step

    def judged(
        self, way: MemoryWay, best: Step, worst: Step, *, instead: Verdict | None = None, offloaded: float = 0.0
    ) -> MemoryOption:
        """`instead`: the verdict on a way that wins and may not be taken."""
        gain = best.tokens_per_s / self.base.tokens_per_s - 1
        if gain < 0:
            verdict, reason = Verdict.LOSES, "loses"
        elif gain < MIN_GAIN:
            verdict, reason = Verdict.GAIN_TOO_SMALL, f"wins less than {MIN_GAIN:.0%}"
        elif instead is Verdict.NEEDS_CONSENT:
            verdict, reason = instead, "changes what the model answers: its owner must consent, after an evaluation"
        elif instead is Verdict.NO_ENGINE:
            verdict, reason = instead, "no engine has it today"
        else:
            verdict, reason = Verdict.TAKE, "wins"
        return self.option(way, verdict, f"{reason} ({gain:+.1%})", best=best, worst=worst, offloaded=offloaded)

    def option(
        self, way: MemoryWay, verdict: Verdict, reason: str, *, best: Step, worst: Step, offloaded: float = 0.0
    ) -> MemoryOption:
        draws = [self._draw_w(step) for step in (best, worst)]
        energies = [w / s.tokens_per_s for s, pair in zip((best, worst), draws, strict=True) if s.requests for w in pair]
        return MemoryOption(
            way=way, verdict=verdict, reason=reason, best=best, worst=worst, offloaded_bytes=offloaded,
            gain=best.tokens_per_s / self.base.tokens_per_s - 1,
            joules_per_token=(min(energies), max(energies)) if energies else (0.0, 0.0),
        )  # fmt: skip

    def _draw_w(self, step: Step) -> tuple[float, float]:
        """Lowest and highest draw of a GPU over this step: never above its cap."""
        if step.bound == "link":
            low, high = (min(self.terms.cap_w, share * self.rank.tdp_w) for share in LINK_BOUND_TDP)
            return low, high
        busy_w = self.terms.cap_w if self.terms.draw_w is None else min(self.terms.cap_w, self.terms.draw_w)
        return busy_w, busy_w


def gpus_within(budget_w: float, charge_w: float) -> int:
    """GPUs of a charge each that a budget of watts holds. Raises MemoryPlanError on a charge that is not above 0."""
    if not charge_w > 0:
        raise MemoryPlanError(f"a GPU is charged more than 0 W, not {charge_w}")
    return max(0, int(budget_w // charge_w))


def gpus_needed(tokens_per_s: float, option: MemoryOption) -> int:
    """GPUs for a rate of tokens, at best. Raises MemoryPlanError where the way gives none."""
    if option.best.tokens_per_s <= 0:
        raise MemoryPlanError(f"{option.way} gives no token per second")
    return max(1, -int(-tokens_per_s // option.best.tokens_per_s))


@dataclass(frozen=True, slots=True)
class MemoryRefusal:
    """`reason` is a condition's, `factor` how many times slower a step is predicted to be, lowest and highest."""

    reason: str
    message: str
    factor: tuple[float, float]


def cpu_offload_refusal(
    rank: Rank, load: DecodeLoad, offloaded_bytes: float, *, links: tuple[float, float]
) -> MemoryRefusal | None:
    """Of `--cpu-offload-gb`, which reads weights in place at each step: refused where the weights fit without it. `links`: the
    slowest and the fastest link that may be there, bytes per second. None: the weights do not fit, and nothing else may help."""
    fits = MEMORY_SHARE * rank.memory_bytes - load.weights_bytes - ACTIVATION_BYTES > 0
    if offloaded_bytes <= 0 or not fits:
        return None
    requests = max(1, requests_that_fit(rank, load))
    base_s = step_of(rank, load, requests).step_s
    factors = sorted(
        step_of(_behind(rank, link), load, requests, offloaded_bytes=offloaded_bytes, link=Link.SERIAL).step_s / base_s
        for link in links
    )
    return MemoryRefusal(
        "WeightsFit",
        f"the weights fit without --cpu-offload-gb, which would make each step {factors[0]:.0f} to {factors[-1]:.0f} times as "
        "long: leave it out",
        (factors[0], factors[-1]),
    )


def _behind(rank: Rank, bytes_per_s: float) -> Rank:
    """The same rank behind another link."""
    return replace(rank, link_bytes_per_s=bytes_per_s)


def layers_to_offload(layers: int, layer_bytes: float, wanted_bytes: float) -> tuple[int, int]:
    """vLLM's `--offload-group-size` with one layer of each group on the host: group size, and layers that go. (0, 0): none."""
    if wanted_bytes < layer_bytes:
        return 0, 0
    group = -int(-layer_bytes * layers // wanted_bytes)
    return group, layers // group
