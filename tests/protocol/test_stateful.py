"""Hypothesis searches for a sequence of mishaps that breaks "charge >= true limit", or lets what vanished fall out of a sum that
it still draws on (T3), or an acknowledgement be forgotten (T4); and shrinks it when it finds one.

The machine's rules are `support.explorer`'s actions on the core's real keeper and enforcer; the invariant is checked after
every one of them, and at the end everything is put right and the fleet must hold its limit again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.sizes import sized
from support.vanishing import ALL_WEIGHTS, VanishingExplorer
from support.world import World


class Protocol(RuleBasedStateMachine):
    explorer: VanishingExplorer

    @initialize(policy=st.sampled_from(["Uniform", "PhaseAware", "Polca", "Clocked"]), gpus=st.integers(1, 2), rich=st.booleans())
    def begin(self, policy: str, gpus: int, rich: bool) -> None:
        self.explorer = VanishingExplorer(World(policy=policy, gpus_per_node=gpus, rich=rich, two_rows=True))

    @rule(data=st.data(), times=st.integers(1, 4))
    def calm(self, data: Any, times: int) -> None:
        for _ in range(times):
            self.explorer.play("calm", lambda n: data.draw(st.integers(0, n - 1)))

    @invariant()
    def charge_covers_truth(self) -> None:
        if hasattr(self, "explorer"):
            self.explorer.world.check()

    def teardown(self) -> None:
        if hasattr(self, "explorer"):
            self.explorer.recover()


def _rule(name: str) -> Callable[..., None]:
    def act(self: Protocol, data: Any) -> None:
        self.explorer.play(name, lambda n: data.draw(st.integers(0, n - 1)))

    act.__name__ = name
    return rule(data=st.data())(act)


for _name in ALL_WEIGHTS:
    if _name != "calm":
        setattr(Protocol, _name, _rule(_name))

Protocol.TestCase.settings = settings(
    max_examples=sized(100), stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestProtocol = Protocol.TestCase
