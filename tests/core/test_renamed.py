"""A machine that runs another boot under another name: only then is what ran under the old name over, without a person's word."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from splitwatt_core.budget.facts import NodeFact, Plan
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.budget.tree import BudgetSpec, Selector
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_core.protocol.contract import GpuStatus, Grant, NodePower, Spec, Status

RACK = {"rack": "a"}
MACHINE = "aws:///eu-1/i-0123"
GONE_S = 20.0
LATER_S = 30.0


def gpu(uuid: str, acked: int) -> GpuStatus:
    return GpuStatus(uuid, acked, 700, 700, min_w=200, max_w=700, default_w=700)


@dataclass
class Site:
    """One rack of two nodes: `old` goes, and `new` comes."""

    keeper: Keeper
    version: int = 0

    def node(
        self, name: str, boot: str, *, gpus: str = "g0 g1", machine: str = MACHINE, ready: bool = True, term: int = 1
    ) -> None:
        self.version += 1
        self.keeper.on_node(NodeFact(name, RACK, boot, provider_id=machine, ready=ready), 0.0)
        lines = tuple(Grant(uuid, 1, 700, 700, 700) for uuid in gpus.split())
        spec = Spec(term, f"u-{name}", budgets=("rack", "row"), gpus=lines)
        status = Status(observed_uid=f"u-{name}", boot_id=boot, gpus=tuple(gpu(line.uuid, 1) for line in lines))
        self.keeper.on_node_power(NodePower(name, f"u-{name}", self.version, spec, status), 0.0)

    def after(self, *, lease_s: float = GONE_S + 1.0, heir: str = "new") -> Plan:
        self.keeper.on_node_gone("old", GONE_S)
        self.keeper.step(GONE_S)
        self.keeper.on_node_lease(heir, lease_s)
        return self.keeper.step(LATER_S)


@pytest.fixture
def site() -> Site:
    keeper = Keeper(term=1, policies=POLICIES)
    keeper.on_budget(BudgetSpec("row", "u", 1, 50_000), 0.0)
    keeper.on_budget(BudgetSpec("rack", "u", 1, 26_000, parent="row", selector=Selector(RACK)), 0.0)
    made = Site(keeper)
    made.node("old", "boot-1")
    return made


def names(plan: Plan) -> list[tuple[str, str]]:
    return [(row.node_power.name, row.heir.name) for row in plan.replaced]


def test_another_boot_of_the_same_machine_ends_the_charge_of_the_old_name(site: Site) -> None:
    site.node("new", "boot-2")
    plan = site.after()
    assert names(plan) == [("old", "new")]
    assert ("old", "MachineRenamed") in [(note.name, note.reason) for note in plan.notes]
    assert plan.budgets["rack"].charge_w == 4 * 700, "until fresh reads say the same"
    assert site.keeper.step(LATER_S + 1.0).replaced == (), "at a measured pace"
    site.keeper.on_contract_crd("crd")
    for name in ("old", "new"):
        seen = site.keeper.roster.nodes[name].object
        assert seen is not None
        site.keeper.on_node_power(replace(seen, resource_version=seen.resource_version + 100), LATER_S)
    site.keeper.on_node_power_gone("old", LATER_S + 2.0)
    plan = site.keeper.step(LATER_S + 4.0)
    assert "old" in plan.verify
    site.keeper.on_absence_verified("old", LATER_S + 4.0, "crd")
    plan = site.keeper.step(LATER_S + 5.0)
    assert plan.budgets["rack"].charge_w == 2 * 700
    steered = next(c for c in plan.budgets["rack"].conditions if c.type == "Steered")
    assert steered.status, "its GPUs are listed once again"


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("the same boot", {"boot": "boot-1"}),
        ("no boot id", {"boot": ""}),
        ("not ready", {"ready": False}),
        ("another machine", {"machine": "aws:///eu-1/i-9"}),
        ("other GPUs", {"gpus": "g0"}),
        ("not stamped by this operator yet", {"term": 0}),
    ],
)
def test_less_than_that_proves_nothing(site: Site, what: str, changes: dict[str, object]) -> None:
    site.node("new", **{"boot": "boot-2", **changes})  # type: ignore[arg-type]
    assert names(site.after()) == [], what


def test_a_node_without_an_agent_does_not_say_what_it_has(site: Site) -> None:
    site.node("old", "boot-1", gpus="")
    site.keeper.roster.nodes["old"].gpus.clear()
    site.node("new", "boot-2", gpus="")
    assert names(site.after()) == []


def test_no_id_is_no_machine(site: Site) -> None:
    site.node("old", "boot-1", machine="")
    site.node("new", "boot-2", machine="")
    assert names(site.after()) == []


def test_an_id_that_two_nodes_share_names_no_machine(site: Site) -> None:
    site.node("new", "boot-2")
    site.node("third", "boot-3", gpus="g7")
    assert names(site.after()) == []


def test_a_node_whose_kubelet_stopped_before_only_looks_ready(site: Site) -> None:
    """The machine was renamed the other way round: `new` is the name that it had before, and nobody took it away."""
    site.node("new", "boot-2")
    assert names(site.after(lease_s=GONE_S - 1.0)) == []


def test_a_budget_that_would_not_count_it_any_more_keeps_it(site: Site) -> None:
    site.keeper.on_budget(BudgetSpec("other", "u", 1, 26_000, parent="row", selector=Selector({"rack": "b"})), 0.0)
    site.node("new", "boot-2")
    site.keeper.on_node(NodeFact("new", {"rack": "b"}, "boot-2", provider_id=MACHINE), 1.0)
    seen = site.keeper.roster.nodes["new"].object
    assert seen is not None and seen.spec is not None
    moved = replace(seen, spec=replace(seen.spec, budgets=("other", "row")), resource_version=99)
    site.keeper.on_node_power(moved, 1.0)
    assert names(site.after()) == []


def test_a_name_that_came_back_is_gone_no_more(site: Site) -> None:
    site.node("new", "boot-2")
    assert names(site.after()) == [("old", "new")]
    site.keeper.on_node(NodeFact("old", RACK, "boot-3", provider_id="aws:///eu-1/i-9"), LATER_S + 1.0)
    assert site.keeper.step(LATER_S + 9.0).replaced == ()
