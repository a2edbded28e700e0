"""Who uses a GPU decides what becomes of its cap: unknown is not idle, excluded and frozen are left alone, doubles are named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from splitwatt_core.budget.facts import NodeFact, PodFact
from splitwatt_core.budget.reporting.steering import UNOWNED_GRACE_S
from splitwatt_core.names import LABEL_EXCLUDED
from splitwatt_core.protocol.contract import Phase, Use, Workload
from support.keepers import caps, condition, settled
from support.machines import Agent
from support.world import DEFAULT_W, MIN_W, ROOT, World

POD = Workload("ns", "a")


def tell(world: World, monkeypatch: pytest.MonkeyPatch, use: Use, *, node: str = "a0", **more: object) -> None:
    """From now on this node's agent says so of its GPUs that have no workload."""
    agent = world.agents[node]
    plain = Agent.status

    def status(self: Agent, *arguments: object) -> object:
        said = plain(self, *arguments)  # type: ignore[arg-type]
        if self is not agent:
            return said
        lines = tuple(replace(line, use=use) if line.workload is None else line for line in said.gpus)
        return replace(said, gpus=lines, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Agent, "status", status)


@pytest.mark.parametrize("use", [Use.BUSY, Use.UNKNOWN])
def test_no_owner_and_no_proof_of_idleness_is_held_charged_and_named(monkeypatch: pytest.MonkeyPatch, use: Use) -> None:
    world = World(policy="PhaseAware", limit_w=2000, gpus_per_node=1)
    tell(world, monkeypatch, use, unresolved=("nvidia.com/gpu nvidia0/vgpu1 (ns/theirs)",))
    operator = settled(world, 12)
    assert caps(world, "a0") == [DEFAULT_W] and caps(world, "b0") == [MIN_W], "the neighbour is proven idle"
    assert operator.last.budgets["a"].charge_w >= DEFAULT_W
    world.now_s += UNOWNED_GRACE_S
    operator.settle(3)
    for budget in ("a", ROOT):
        said = condition(operator, budget, "OwnersKnown")
        assert (said.status, said.reason) == (False, "UnknownOwner")
        assert "a0/a0-g0 at 700 W" in said.message and "nvidia0/vgpu1" in said.message
    assert condition(operator, "b", "OwnersKnown").status


def test_a_proof_of_idleness_frees_its_watts(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    with monkeypatch.context() as unproven:
        tell(world, unproven, Use.UNKNOWN)
        operator = settled(world, 12)
        assert caps(world, "a0") == [DEFAULT_W]
    operator.settle(12)
    assert caps(world, "a0") == [MIN_W]


def test_it_gives_nothing_for_others_to_rise_and_what_a_lowered_limit_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(policy="PhaseAware", limit_w=1200)
    tell(world, monkeypatch, Use.BUSY)
    world.nodes["b0"].workloads["b0-g0"] = POD
    world.pods[("ns", "a")] = PodFact("ns", "a", Phase.PREFILL, 9)
    operator = settled(world, 20)
    assert caps(world, "a0") == [DEFAULT_W], "prefill of the highest rank would take 640 W, and gets what is left"
    assert caps(world, "b0") == [500]
    world.set_limit(700)
    operator.settle(30)
    assert caps(world, "b0") == [400] and caps(world, "a0")[0] <= 300, "floors do not fit: the lowest rank gives"
    world.set_limit(1200)
    operator.settle(60)
    assert caps(world, "a0") == [DEFAULT_W], "and gets back what it had"


def test_work_that_begins_on_an_idle_gpu_without_an_owner_is_not_left_on_the_idle_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    operator = settled(world, 12)
    assert caps(world, "a0") == [MIN_W]
    tell(world, monkeypatch, Use.BUSY)
    operator.settle(30)
    assert caps(world, "a0") == [DEFAULT_W]


def test_a_gpu_that_several_pods_share_has_one_cap_of_the_strongest_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    world.pods[("ns", "a")] = PodFact("ns", "a", Phase.DECODE, 1)
    world.pods[("ns", "b")] = PodFact("ns", "b", Phase.PREFILL, 0)
    plain = Agent.status

    def status(self: Agent, *arguments: object) -> object:
        said = plain(self, *arguments)  # type: ignore[arg-type]
        both = (POD, Workload("ns", "b"))
        return replace(said, gpus=tuple(replace(line, workload=POD, workloads=both, use=Use.BUSY) for line in said.gpus))

    monkeypatch.setattr(Agent, "status", status)
    operator = settled(world, 30)
    assert caps(world, "a0")[0] >= 640, "prefill's, not decode's"
    assert operator.keeper.floors_counted()[("ns", "a")].gpus == 2


def test_a_floor_is_in_every_sum_and_in_the_nodes_allotment(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    plain = Agent.status

    def status(self: Agent, *arguments: object) -> object:
        said = plain(self, *arguments)  # type: ignore[arg-type]
        return replace(said, gpus=tuple(replace(line, floor_w=230) for line in said.gpus))

    monkeypatch.setattr(Agent, "status", status)
    operator = settled(world, 20)
    assert operator.last.budgets["a"].charge_w == 230 and operator.last.budgets[ROOT].charge_w == 460
    spec = world.store.objects["a0"].spec
    assert spec is not None and spec.node_limit_w == 230
    world.set_limit(430)
    operator.settle(20)
    feasible = condition(operator, ROOT, "Feasible")
    assert not feasible.status and "need 30 W more" in feasible.message


# ---------------------------------------------------------------------------------------------------- limited from outside


def test_what_somebody_elses_limit_keeps_a_gpu_from_drawing_goes_to_others_until_it_lets_go() -> None:
    world = World(policy="PhaseAware", limit_w=900)
    for rack in ("a", "b"):
        world.nodes[f"{rack}0"].workloads[f"{rack}0-g0"] = Workload("ns", rack)
        world.pods[("ns", rack)] = PodFact("ns", rack, Phase.PREFILL, 5)
    operator = settled(world, 30)
    assert caps(world, "a0") == caps(world, "b0") == [450]
    gpu = world.nodes["a0"].gpus["a0-g0"]
    gpu.outside_w = 250
    operator.settle(12)
    assert caps(world, "a0") == [450] and operator.last.budgets["a"].charge_w == 450, "it may let go at any moment"
    for _ in range(3):
        world.now_s += 60.0
        operator.settle(20)
    assert caps(world, "a0") == [260] and operator.last.budgets["a"].charge_w == 260
    assert caps(world, "b0")[0] > 600, "the neighbour has its watts"
    said = condition(operator, "a", "Steered")
    assert (said.status, said.reason) == (False, "LimitedFromOutside") and "a0/a0-g0 at 250 W" in said.message
    gpu.outside_w = None
    operator.settle(60)
    assert caps(world, "a0") == caps(world, "b0") == [450] and condition(operator, "a", "Steered").status


def test_a_limit_from_outside_that_comes_and_goes_moves_no_cap() -> None:
    world = World(policy="PhaseAware", limit_w=900)
    world.nodes["a0"].workloads["a0-g0"] = Workload("ns", "a")
    world.pods[("ns", "a")] = PodFact("ns", "a", Phase.PREFILL, 5)
    operator = settled(world, 30)
    before = caps(world, "a0")
    gpu = world.nodes["a0"].gpus["a0-g0"]
    for outside_w in (250, None, 250, None):
        gpu.outside_w = outside_w
        world.now_s += 60.0
        operator.settle(6)
        assert caps(world, "a0") == before


# -------------------------------------------------------------------------------------------------------- left alone


def test_an_excluded_node_is_granted_nothing_charged_in_full_and_named() -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    operator = world.elect()
    node = world.nodes["a0"]
    operator.keeper.on_node(NodeFact("a0", {"rack": node.rack, LABEL_EXCLUDED: "true"}, node.boot_id), world.now_s)
    operator.settle(12)
    power = world.store.objects["a0"]
    assert power.spec is not None and power.spec.gpus == () and caps(world, "a0") == [DEFAULT_W]
    assert caps(world, "b0") == [MIN_W] and operator.last.budgets["a"].charge_w == DEFAULT_W
    said = condition(operator, "a", "Steered")
    assert (said.status, said.reason) == (False, "NodesExcluded") and "a0 (700 W)" in said.message


def test_below_a_frozen_budget_no_cap_moves_and_what_stands_is_charged() -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    operator = settled(world, 12)
    world.nodes["a0"].workloads["a0-g0"] = POD
    world.pods[("ns", "a")] = PodFact("ns", "a", Phase.PREFILL, 9)
    operator.keeper.on_budget(replace(world.budgets["a"], frozen=True), world.now_s)
    operator.settle(12)
    assert caps(world, "a0") == [MIN_W], "nothing is raised"
    said = condition(operator, "a", "Steered")
    assert (said.status, said.reason) == (False, "Frozen") and "spec.frozen of a" in said.message
    operator.keeper.on_budget(replace(world.budgets["a"], frozen=False), world.now_s)
    operator.settle(20)
    assert caps(world, "a0")[0] > MIN_W
    operator.keeper.on_budget(replace(world.budgets["a"], frozen=True, limit_w=300), world.now_s)
    high = caps(world, "a0")
    world.now_s += 30.0
    operator.settle(12)
    assert caps(world, "a0") == high and operator.last.budgets["a"].charge_w >= high[0], "and nothing is lowered"


def test_a_frozen_budget_grants_nothing_to_a_new_node() -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    operator = world.elect()
    for name in ("a", "b"):
        operator.keeper.on_budget(replace(world.budgets[name], frozen=True), world.now_s)
    operator.settle(12)
    assert caps(world, "a0") == [DEFAULT_W] == caps(world, "b0")
    assert all(power.spec is not None and power.spec.gpus == () for power in world.store.objects.values())
    assert condition(operator, "a", "Ready").reason != "Adopting"


# ------------------------------------------------------------------------------------------------------------- doubles


def test_a_gpu_that_two_nodes_list_is_charged_in_both_named_and_goes_where_it_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    operator = settled(world, 12)
    plain = Agent.status

    def forged(self: Agent, *arguments: object) -> object:
        said = plain(self, *arguments)  # type: ignore[arg-type]
        stolen = replace(said.gpus[0], uuid="b0-g0")
        return replace(said, gpus=(*said.gpus, stolen)) if self is world.agents["a0"] else said

    with monkeypatch.context() as forging:
        forging.setattr(Agent, "status", forged)
        operator.settle(6)
        for budget, other in (("a", "b0"), ("b", "a0")):
            said = condition(operator, budget, "Steered")
            assert (said.status, said.reason) == (
                False,
                "ContradictoryStatus",
            ) and f"is listed by {other} as well, and charged in both places" in said.message
            assert "compare with nvidia-smi -L on those nodes, and restart an agent that tells something else" in said.message
        assert operator.last.budgets["a"].charge_w == MIN_W + DEFAULT_W and operator.last.budgets["b"].charge_w == DEFAULT_W
    world.now_s += 1.0
    operator.settle(12)
    assert operator.last.budgets["a"].charge_w == MIN_W == operator.last.budgets["b"].charge_w
    assert condition(operator, "a", "Steered").status and condition(operator, "b", "Steered").status


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("owner", ["well", "dead", "rebooted", "gone"])
def test_what_another_node_has_is_not_lost_for_good_here_once_this_one_denies_it(
    owner: str, restart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole status of another node, for a while: this node's own GPU is not in it either."""
    world = World(policy="PhaseAware", limit_w=2000)
    operator = settled(world, 12)
    plain = Agent.status

    def forged(self: Agent, *arguments: object) -> object:
        said = plain(self, *arguments)  # type: ignore[arg-type]
        return replace(said, gpus=(replace(said.gpus[0], uuid="b0-g0"),)) if self is world.agents["a0"] else said

    with monkeypatch.context() as forging:
        forging.setattr(Agent, "status", forged)
        operator.settle(6)
        assert operator.last.budgets["a"].charge_w >= MIN_W + DEFAULT_W, "its own, and what it says it has"
        if owner == "rebooted":
            world.reboot("b0")
        elif owner != "well":
            world.agents["b0"].crash()
            world.nodes["b0"].present = owner == "dead"
        world.tell_nodes()
        operator = settled(world, 6) if restart else operator
    world.now_s += 1.0
    operator.settle(12)
    assert operator.keeper.roster.nodes["a0"].gpus.keys() == {"a0-g0"}
    assert operator.last.budgets["a"].charge_w == MIN_W and condition(operator, "a", "Steered").status
    assert "b0-g0" in operator.keeper.roster.nodes["b0"].gpus


def forge(monkeypatch: pytest.MonkeyPatch, world: World, **fields: int) -> None:
    """The agent of a0 says this of all its GPUs."""
    plain = Agent.status

    def forged(self: Agent, *arguments: object) -> object:
        said = plain(self, *arguments)  # type: ignore[arg-type]
        rows = tuple(replace(row, **fields) for row in said.gpus) if self is world.agents["a0"] else said.gpus  # type: ignore[arg-type]
        return replace(said, gpus=rows)

    monkeypatch.setattr(Agent, "status", forged)


def test_a_range_that_is_none_is_in_the_way_and_nobody_is_told_to_remove_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    operator = settled(world, 12)
    forge(monkeypatch, world, min_w=700, max_w=200)
    world.set_limit(800)
    operator.settle(12)
    said = condition(operator, "row", "Feasible")
    assert said.reason == "ChargesInTheWay", said.message
    assert "a0/a0-g0" in said.message


def test_grants_below_what_a_gpu_takes_are_put_right_once_it_says_what_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(policy="Uniform", limit_w=900)
    operator = settled(world, 12)
    with monkeypatch.context() as forging:
        forge(forging, world, min_w=1)
        world.set_limit(320)
        operator.settle(10)
        spec = world.store.objects["a0"].spec
        assert spec is not None and spec.gpus[0].cap_w < MIN_W
    world.set_limit(400)
    operator.settle(12)
    assert caps(world, "a0") == [MIN_W] == caps(world, "b0")
    said = condition(operator, "row", "CapsEnforced")
    assert said.status, said.message
