"""Grants that the API server refuses: read afresh past all watches, repeated seldom, counted, and told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from splitwatt_client import Connection
from splitwatt_client.resources import NODE_POWERS, NODES
from splitwatt_core.budget.facts import NodeFact, Plan, Replaced, SpecWrite
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.budget.tree import BudgetSpec, Selector
from splitwatt_core.names import ANNOTATION_RELEASE
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_core.protocol.contract import node_power_from_wire
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_operator.budgets import refusals
from splitwatt_operator.budgets.performer import Performer
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.pen import Pen

PATIENCE_S = 60.0
NODE_INFO = dict.fromkeys(
    (
        *("architecture", "containerRuntimeVersion", "kernelVersion", "kubeProxyVersion", "kubeletVersion", "machineID"),
        *("operatingSystem", "osImage", "systemUUID"),
    ),
    "",
)
"""What the API server asks for beside the boot id."""


@pytest.fixture
async def api(crds: ControlPlane) -> AsyncIterator[Connection]:
    async with Connection(crds.kubeconfig) as connection:
        yield connection


class Deciding:
    """A keeper and its performer without any watch: what the keeper knows, the performer has told it."""

    def __init__(self, connection: Connection, node: str) -> None:
        self.metrics, self.woken = Metrics(), asyncio.Event()
        self.keeper = Keeper(term=7, policies=POLICIES)
        pen = Pen(connection, self.metrics, held=lambda now_s: True)
        self.performer = Performer(connection, pen, self.keeper, done=self.woken.set)
        now_s = time.time()
        self.keeper.on_budget(
            BudgetSpec(name="leaf", uid="b", generation=1, limit_w=20_000, selector=Selector({"rack": node})), now_s
        )
        self.keeper.on_node(NodeFact(node, {"rack": node}, "boot"), now_s)

    async def run(self, *, until_s: float = PATIENCE_S) -> None:
        """Decide and perform, at once after each outcome, until the node is stamped or the time is over."""
        end_s = time.monotonic() + until_s
        while time.monotonic() < end_s and not any(account.stamped for account in self.keeper.roster.nodes.values()):
            self.woken.clear()
            self.performer.start(self.keeper.step(time.time()))
            try:
                async with asyncio.timeout(0.05):
                    await self.woken.wait()
            except TimeoutError:
                pass

    def refused(self, code: int) -> float:
        return (
            self.metrics.registry.get_sample_value("splitwatt_api_refusals_total", {"kind": "NodePower", "code": str(code)})
            or 0.0
        )


@pytest.fixture
async def node(api: Connection, namespace: str) -> AsyncIterator[str]:
    yield namespace  # a name that nobody else has
    await api.delete(NODE_POWERS, namespace)


async def test_a_write_on_a_version_that_is_over_is_decided_anew_without_any_watch(api: Connection, node: str) -> None:
    made = await api.create({"apiVersion": NODE_POWERS.api_version, "kind": "NodePower", "metadata": {"name": node}})
    deciding = Deciding(api, node)
    deciding.keeper.on_node_power(node_power_from_wire(made), time.time())
    label = {"metadata": {"labels": {"moved": "on"}}}
    await api.patch(NODE_POWERS, node, label, field_manager="somebody")
    await deciding.run()
    await deciding.performer.stop()
    assert deciding.refused(409) == 1
    stored = await api.get(NODE_POWERS, node)
    assert stored is not None
    assert stored["spec"]["term"] == 7


async def test_a_cap_that_falls_does_not_wait_for_an_agent_that_tells_its_status_all_the_time(api: Connection, node: str) -> None:
    made = await api.create({"apiVersion": NODE_POWERS.api_version, "kind": "NodePower", "metadata": {"name": node}})
    row = {"uuid": "g0", "grant": 5, "capWatts": 400, "safeCapWatts": 400, "chargeWatts": 400}
    spec = {"term": 7, "forUID": made["metadata"]["uid"], "mode": "Strict", "gpus": [row]}
    known = node_power_from_wire(await api.patch(NODE_POWERS, node, {"spec": spec}, field_manager="splitwatt-operator"))
    assert known.spec is not None
    lower = replace(known.spec, gpus=(replace(known.spec.gpus[0], grant=6, cap_w=300, safe_cap_w=300),))
    write = SpecWrite(node, known.uid, known.resource_version, lower, over=known.spec)
    await api.patch(NODE_POWERS, node, {"status": {"observedTerm": 7}}, subresource="status", field_manager="agent")
    deciding = Deciding(api, node)
    for _ in range(5):
        deciding.performer._refusals.refused(node, "an earlier one", time.monotonic())
    begun_s = time.monotonic()
    deciding.performer.start(Plan(writes=(write,)))
    await deciding.woken.wait()
    await deciding.performer.stop()
    stored = await api.get(NODE_POWERS, node)
    assert stored is not None and stored["spec"]["gpus"][0]["capWatts"] == 300
    assert stored["status"]["observedTerm"] == 7, "what was told meanwhile stays"
    assert deciding.refused(409) == 1 and time.monotonic() - begun_s < 5.0


async def test_an_object_that_was_made_anew_unseen_is_found(api: Connection, node: str) -> None:
    """Its deletion never came through a watch: a stale view heals itself."""
    manifest = {"apiVersion": NODE_POWERS.api_version, "kind": "NodePower", "metadata": {"name": node}}
    first = await api.create(manifest)
    deciding = Deciding(api, node)
    deciding.keeper.on_node_power(node_power_from_wire(first), time.time())
    await api.delete(NODE_POWERS, node)
    await deciding.run()
    await deciding.performer.stop()
    stored = await api.get(NODE_POWERS, node)
    assert stored is not None
    assert stored["metadata"]["uid"] != first["metadata"]["uid"]
    assert stored["spec"]["forUID"] == stored["metadata"]["uid"]


async def test_a_release_of_a_node_that_is_there_is_taken_back(api: Connection, node: str) -> None:
    notes = {"mine": "kept", ANNOTATION_RELEASE: "all"}
    manifest = {"apiVersion": NODE_POWERS.api_version, "kind": "NodePower", "metadata": {"name": node, "annotations": notes}}
    made = node_power_from_wire(await api.create(manifest))
    deciding = Deciding(api, node)
    deciding.keeper.on_node_power(made, time.time())
    deciding.performer.start(Plan(take_back=(made,)))
    await deciding.woken.wait()
    assert deciding.keeper.roster.nodes[node].object == made, "no fresh read found its Node"
    await api.create({"apiVersion": NODES.api_version, "kind": "Node", "metadata": {"name": node}})
    try:
        deciding.woken.clear()
        deciding.performer.start(Plan(take_back=(made,)))
        await deciding.woken.wait()
    finally:
        await api.delete(NODES, node)
    stored = await api.get(NODE_POWERS, node)
    assert stored is not None and stored["metadata"]["annotations"] == {"mine": "kept"}
    told = deciding.keeper.roster.nodes[node].object
    assert told is not None and told.release == frozenset(), "its answer is taken in"
    await deciding.performer.stop()


@pytest.mark.parametrize("boot", ["boot-2", "boot-3"])
async def test_a_machine_that_runs_under_another_name_is_read_afresh(api: Connection, node: str, boot: str) -> None:
    made = node_power_from_wire(
        await api.create({"apiVersion": NODE_POWERS.api_version, "kind": "NodePower", "metadata": {"name": node}})
    )
    deciding = Deciding(api, node)
    heir = NodeFact(f"{node}-new", {}, "boot-2", provider_id="aws:///z/i-1")
    manifest = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": heir.name}, "spec": {"providerID": heir.provider_id}}
    await api.create(manifest)
    status = {"nodeInfo": {**NODE_INFO, "bootID": boot}, "conditions": [{"type": "Ready", "status": "True"}]}
    await api.patch(NODES, heir.name, {"status": status}, subresource="status", field_manager="kubelet")
    try:
        deciding.performer.start(Plan(replaced=(Replaced(made, heir),)))
        await deciding.woken.wait()
    finally:
        await api.delete(NODES, heir.name)
    assert (await api.get(NODE_POWERS, node) is None) is (boot == heir.boot_id)
    await deciding.performer.stop()


async def test_refusals_without_end_are_few_counted_and_told(api: Connection, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "STUCK_S", 3.0)
    manifest = {"apiVersion": NODE_POWERS.api_version, "kind": "NodePower", "metadata": {"name": node}}
    uid = (await api.create(manifest))["metadata"]["uid"]
    spec = {"term": 9, "forUID": uid, "mode": "Strict"}
    made = await api.patch(NODE_POWERS, node, {"spec": spec}, field_manager="somebody")
    deciding = Deciding(api, node)
    known = node_power_from_wire(made)
    # A term above ours stands there, as after a takeover that nobody told us of: the API server refuses ours each time.
    monkeypatch.setattr(deciding.keeper, "on_node_power", lambda *_: None)
    deciding.keeper.roster.account(node).observe(known, time.time(), term=7)
    assert deciding.performer.problem() is None
    await deciding.run(until_s=5.0)
    refused = deciding.refused(422)
    assert 3 <= refused <= 10, "twenty a second without a pause"
    assert "no cap can be moved for" in (deciding.performer.problem() or "")
    await deciding.performer.stop()
