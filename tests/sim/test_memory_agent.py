"""The agent and the API server's store that live in memory: they refuse what the real ones refuse."""

from __future__ import annotations

from dataclasses import replace

from splitwatt_core.budget.facts import Rejected, SpecWrite, Written
from splitwatt_core.protocol.contract import Grant, Mode, NodePower, Spec, Status
from splitwatt_core.protocol.enforcer import GpuIdentity, ObjectVerdict, Readback
from splitwatt_truth.agent import MemoryAgent
from splitwatt_truth.store import ObjectStore

GPUS = {uuid: GpuIdentity(uuid, "X", 200_000, 700_000, 700_000) for uuid in ("a", "b")}


def spec(uid: str, cap_w: int, *, term: int = 1, grant: int = 5, node_limit_w: int | None = None) -> Spec:
    rows = tuple(Grant(uuid, grant, cap_w, cap_w, 700) for uuid in GPUS)
    return Spec(term=term, for_uid=uid, mode=Mode.STRICT, node_limit_w=node_limit_w, gpus=rows)


def version(cap_w: int, number: int, **changes: int) -> NodePower:
    return NodePower("n", "u", number, spec("u", cap_w, grant=number, **changes))


# ------------------------------------------------------------------------------------------------------------- the store


def made(store: ObjectStore) -> NodePower:
    made = store.create("n")
    assert made is not None
    return made


def test_a_write_decided_on_an_old_version_is_refused() -> None:
    store = ObjectStore()
    first = made(store)
    written = store.write_spec(SpecWrite("n", first.uid, first.resource_version, spec(first.uid, 300)))
    assert isinstance(written, Written) and written.node_power == store.objects["n"]
    late = store.write_spec(SpecWrite("n", first.uid, first.resource_version, spec(first.uid, 600)))
    assert isinstance(late, Rejected) and late.reason.startswith("409")
    assert store.write_status("n", first.uid, first.resource_version, Status(boot_id="b")) is None
    told = store.write_status("n", first.uid, written.node_power.resource_version, Status(boot_id="b"))
    assert told is not None and told.spec == written.node_power.spec
    assert told.resource_version > written.node_power.resource_version


def test_a_term_never_falls_unless_the_fence_is_down() -> None:
    store = ObjectStore()
    first = made(store)
    second = store.write_spec(SpecWrite("n", first.uid, first.resource_version, spec(first.uid, 300, term=4)))
    assert isinstance(second, Written)
    lower = SpecWrite("n", first.uid, second.node_power.resource_version, spec(first.uid, 300, term=3))
    refused = store.write_spec(lower)
    assert isinstance(refused, Rejected) and refused.reason.startswith("422")
    store.fence = False
    assert isinstance(store.write_spec(lower), Written)


def test_an_object_born_again_is_another_one() -> None:
    store = ObjectStore(logged=True)
    first = made(store)
    assert store.create("n") is None
    store.delete("n")
    again = made(store)
    assert again.uid != first.uid
    write = SpecWrite("n", first.uid, again.resource_version, spec(first.uid, 300))
    assert isinstance(store.write_spec(write), Rejected)
    assert store.write_status("n", first.uid, again.resource_version, Status()) is None
    assert store.log == [("n", first, ""), ("n", None, first.uid), ("n", again, "")]


def test_what_nobody_watches_is_not_kept() -> None:
    store = ObjectStore()
    made(store)
    store.delete("n")
    assert store.log == []


# ------------------------------------------------------------------------------------------------------------- the agent


def test_grants_are_set_read_back_and_acknowledged() -> None:
    agent, limits_mw = MemoryAgent(GPUS), dict.fromkeys(GPUS, 700_000)
    assert agent.observe(version(300, 5), consistent=True) is ObjectVerdict.ACCEPTED
    agent.settle(1.0, limits_mw)
    assert limits_mw == dict.fromkeys(GPUS, 300_000)
    status = agent.status("boot", {})
    assert (status.observed_uid, status.observed_term, status.boot_id) == ("u", 1, "boot")
    assert {(gpu.acked_grant, gpu.management_w) for gpu in status.gpus} == {(5, 300)}


def test_nothing_rises_in_the_round_that_the_record_is_written_in() -> None:
    agent = MemoryAgent(GPUS)
    low = {uuid: Readback(300_000, 300_000) for uuid in GPUS}
    agent.observe(version(500, 5), consistent=True)
    first = agent.tick(1.0, low)
    assert first.persist is not None and first.set_caps == ()
    assert agent.record == first.persist
    assert {call.cap_mw for call in agent.tick(1.0, low).set_caps} == {500_000}


def test_a_call_that_has_not_returned_is_not_made_again() -> None:
    agent = MemoryAgent(GPUS)
    readbacks = {uuid: Readback(700_000, 700_000) for uuid in GPUS}
    agent.observe(version(300, 5), consistent=True)
    calls = agent.look(1.0, readbacks).set_caps
    assert len(calls) == 2
    assert agent.look(1.1, readbacks).set_caps == ()
    agent.returned(calls, 1.2)
    assert len(agent.look(3.0, readbacks).set_caps) == 2, "they reported success and did nothing"


def test_a_new_process_has_its_disk_and_no_more() -> None:
    agent, limits_mw = MemoryAgent(GPUS), dict.fromkeys(GPUS, 700_000)
    agent.observe(version(300, 5), consistent=True)
    agent.settle(1.0, limits_mw)
    agent.start()
    assert agent.observed is None
    assert agent.observe(version(600, 9), consistent=False) is ObjectVerdict.UNSYNCED
    assert agent.observed is None
    rebooted_mw = dict.fromkeys(GPUS, 700_000)
    agent.settle(2.0, rebooted_mw)
    assert rebooted_mw == dict.fromkeys(GPUS, 300_000), "what is on the disk lowers"
    lower = replace(version(600, 9), spec=spec("u", 600, grant=4))
    agent.observe(lower, consistent=True)
    agent.settle(3.0, rebooted_mw)
    assert rebooted_mw == dict.fromkeys(GPUS, 300_000), "and a lower grant than the one on it is refused"


def test_a_guarded_agent_keeps_its_nodes_allotment() -> None:
    for guarded, want_w in ((False, 500), (True, 400)):
        agent, limits_mw = MemoryAgent(GPUS, guarded=guarded), dict.fromkeys(GPUS, 700_000)
        agent.observe(version(500, 5, node_limit_w=800), consistent=True)
        agent.settle(1.0, limits_mw)
        assert limits_mw == dict.fromkeys(GPUS, want_w * 1000)
