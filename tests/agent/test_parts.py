"""The agent's parts that need no driver: its memory on disk, what it reports, which GPUs it lists, and stepping over hangs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest
from splitwatt_agent.conditions import (
    CAPS_ENFORCED,
    FOREIGN_LIMIT,
    OBSERVING,
    PAUSED,
    READY,
    ControlView,
    report_of,
    status_to_write,
)
from splitwatt_agent.nvml import UNKNOWN_LIMIT_MW, Inventory, NvmlError
from splitwatt_agent.session import take_stock, without_leased_watts
from splitwatt_agent.state_dir import StateDir, StateDirError
from splitwatt_agent.threads import Sweeper, daemon_call
from splitwatt_agent.workloads import ArgumentError, socket_path
from splitwatt_client import podresources, resources
from splitwatt_core import names
from splitwatt_core.conditions import MAX_MESSAGE_CHARS, Condition
from splitwatt_core.protocol.contest import Contest
from splitwatt_core.protocol.contract import (
    MAX_GPUS_PER_NODE,
    GpuStatus,
    Grant,
    Health,
    Mode,
    NodePower,
    Spec,
    status_from_wire,
    status_to_wire,
)
from splitwatt_core.protocol.enforcer import GpuIdentity, ObjectVerdict
from splitwatt_core.protocol.record import Record, Taken

PATIENCE_S = 30.0


def identity(name: str, default_mw: int = 700_000) -> GpuIdentity:
    return GpuIdentity(uuid=name, model="H100", min_mw=200_000, max_mw=700_000, default_mw=default_mw)


def line(uuid: str, **changes: object) -> GpuStatus:
    good = GpuStatus(
        uuid=uuid, acked_grant=5, management_w=400, enforced_w=390, min_w=200, max_w=700, default_w=700, model="H100"
    )
    return replace(good, **changes)  # type: ignore[arg-type]


def view(*gpus: GpuStatus, **changes: object) -> ControlView:
    good = ControlView(
        observed_uid="u", observed_term=3, boot_id="b", gpus=gpus, granted_w={gpu.uuid: 400 for gpu in gpus},
        overdue_s={}, persistence={}, verdict=ObjectVerdict.ACCEPTED, unknown_gpus=(), mode=Mode.STRICT, lowered={},
        trouble="", disk_error="", contract_error="", owners_error="", unresolved=(),
    )  # fmt: skip
    return replace(good, **changes)  # type: ignore[arg-type]


def condition(seen: ControlView, kind: str) -> Condition:
    return next(c for c in report_of(seen).conditions if c.type == kind)


# ------------------------------------------------------------------------------------------------------- memory on disk


def test_the_record_survives_and_a_first_start_has_none(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    assert state.read_record() == Record()
    record = Record(term=7, grants={"GPU-a": Taken(7_000_000_003, 400, 380, "u-1", acked_grant=7_000_000_001, since_cap_w=450)})
    state.write_record(record)
    state.close()
    again = StateDir(tmp_path / "state")
    assert again.read_record() == record
    again.close()


def test_the_record_of_an_older_agent_is_read_and_one_that_is_rolled_back_to_reads_ours(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    (tmp_path / "record.json").write_text('{"term": 7, "grants": {"GPU-a": [7000000003, 400]}}')
    assert state.read_record() == Record(7, {"GPU-a": Taken(7_000_000_003, 400, 400)})
    state.write_record(Record(7, {"GPU-a": Taken(7_000_000_004, 500, 450, "u-1", 7_000_000_003, 500)}))
    assert json.loads((tmp_path / "record.json").read_text())["grants"] == {"GPU-a": [7_000_000_004, 500]}
    state.close()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"term": 1}',
        '{"term": "x", "grants": {}}',
        '{"term": 1, "grants": {"a": [1]}}',
        '{"term": 1, "grants": {"a": [1, 400]}, "held": []}',
        '{"term": 1, "grants": {"a": [1, 400]}, "held": {"a": {"uid": "u"}}}',
        '{"term": 1, "grants": {"a": [1, 400]}, "held": {"a": 3}}',
        "null",
        "[" * 100_000,
        '{"term": -1, "grants": {}}',
        '{"term": 1000000000000000000000000000000, "grants": {}}',
        '{"term": 1, "grants": {"a": [10000000000000000000000000000000000000000, 400]}}',
        '{"term": 1, "grants": {"a": [5, 2000000000]}}',
        '{"term": 1, "grants": {"a": [5, -400]}}',
        '{"term": 1, "grants": {"a": [1, 400]}, '
        '"held": {"a": {"uid": "u", "safeCapWatts": 400, "ackedGrant": 99, "sinceCapWatts": 400}}}',
    ],
)
def test_a_record_that_cannot_be_understood_stops_the_start(tmp_path: Path, text: str) -> None:
    state = StateDir(tmp_path)
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(StateDirError, match=r"record\.json cannot be understood"):
        state.read_record()
    state.close()


def test_a_torn_write_leaves_the_old_record(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.write_record(Record(term=1, grants={}))
    (tmp_path / ".record.json.new").write_text("half a fi")
    assert state.read_record().term == 1
    state.close()


def test_the_inventory_counts_for_one_boot_only(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.write_inventory("boot-1", [identity("GPU-a")])
    assert state.read_inventory("boot-1") == (identity("GPU-a"),)
    assert state.read_inventory("boot-2") == ()
    state.close()


def test_one_state_directory_has_one_agent(tmp_path: Path) -> None:
    first = StateDir(tmp_path)
    with pytest.raises(StateDirError, match="one node has one agent"):
        StateDir(tmp_path)
    first.close()
    StateDir(tmp_path).close()


def test_a_state_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirError, match="name a folder to write to"):
        StateDir(tmp_path / "file" / "state")


# ---------------------------------------------------------------------------------------------------- which GPUs to list


def lost(index: int) -> tuple[int, NvmlError]:
    return index, NvmlError(call="nvmlDeviceGetHandleByIndex", code=pynvml.NVML_ERROR_GPU_IS_LOST)


def test_a_gpu_of_this_boot_that_is_lost_stays_listed() -> None:
    gpus, missing = take_stock(Inventory((identity("a"),), (lost(1),)), (identity("a"), identity("b")))
    assert set(gpus) == {"a", "b"}
    assert missing == {"b": Health.LOST}


def test_a_gpu_without_a_name_stands_in_with_the_largest_default_limit() -> None:
    gpus, missing = take_stock(Inventory((identity("a", 400_000), identity("b")), (lost(2),)), ())
    assert missing == {"unreadable-index-2": Health.LOST}
    assert gpus["unreadable-index-2"].default_mw == 700_000


def test_gpus_of_which_none_ever_said_who_it_is_are_charged_the_most_that_any_may_draw() -> None:
    gpus, missing = take_stock(Inventory((), (lost(0), lost(1))), ())
    assert missing == dict.fromkeys(("unreadable-index-0", "unreadable-index-1"), Health.LOST)
    assert {gpu.default_mw for gpu in gpus.values()} == {UNKNOWN_LIMIT_MW}
    assert take_stock(Inventory((), ()), ()) == ({}, {})


def test_uuids_that_change_with_each_driver_never_make_more_lines_than_a_status_may_have() -> None:
    """Of the kept ones those that were seen last stay."""
    known: tuple[GpuIdentity, ...] = ()
    for load in range(12):
        found = tuple(identity(f"{load}-{index}") for index in range(8))
        gpus, missing = take_stock(Inventory(found, ()), known)
        known = tuple(gpus.values())
    assert len(gpus) == MAX_GPUS_PER_NODE and list(gpus)[:8] == [gpu.uuid for gpu in found]
    assert missing.keys() == gpus.keys() - {gpu.uuid for gpu in found} and "10-0" in missing and "0-0" not in missing


# ------------------------------------------------------------------------------------------------------------- reporting


def test_all_well() -> None:
    seen = view(line("a"), line("b"))
    assert condition(seen, READY).status
    enforced = condition(seen, CAPS_ENFORCED)
    assert (enforced.status, enforced.reason) == (True, "ReadBack")
    assert {c.type for c in report_of(seen).conditions} == {READY, CAPS_ENFORCED}


@pytest.mark.parametrize(
    ("health", "reason"),
    [
        (Health.LOST, "GPULost"),
        (Health.HUNG, "CallHung"),
        (Health.NO_PERMISSION, "NoPermission"),
        (Health.CAP_NOT_ENFORCED, "CapNotEnforced"),
        (Health.NOT_SUPPORTED, "NotSupported"),
        (Health.UNKNOWN, "SetterFailed"),
    ],
)
def test_every_kind_of_sick_gpu_has_a_reason_and_a_sentence(health: Health, reason: str) -> None:
    enforced = condition(view(line("a"), line("b", health=health)), CAPS_ENFORCED)
    assert (enforced.status, enforced.reason) == (False, reason)
    assert "b " in enforced.message
    assert "a " not in enforced.message.split("b ")[0]


@pytest.mark.parametrize(
    ("health", "reason", "words"),
    [
        (Health.UNKNOWN, "Unreadable", "could not be read"),
        (Health.NO_PERMISSION, "NoPermission", "may not be read by this agent"),
    ],
)
def test_a_gpu_that_cannot_be_read_is_told_from_one_that_refuses_a_limit(health: Health, reason: str, words: str) -> None:
    blind = condition(view(line("a", health=health, management_w=None, enforced_w=None)), CAPS_ENFORCED)
    assert blind.reason == reason and words in blind.message
    refuses = condition(view(line("a", health=health, management_w=700, enforced_w=700)), CAPS_ENFORCED)
    assert words not in refuses.message and "a new limit" in refuses.message and "limit 700 W" in refuses.message


def test_the_sentence_has_the_numbers() -> None:
    enforced = condition(view(line("a", health=Health.CAP_NOT_ENFORCED, management_w=700)), CAPS_ENFORCED)
    assert "(granted 400 W, management limit 700 W, enforced 390 W)" in enforced.message
    assert "or a reset or another program undid it" in enforced.message


def test_a_grant_in_progress_is_no_failure_and_an_overdue_one_is() -> None:
    assert condition(view(line("a"), overdue_s={"a": 0.4}), CAPS_ENFORCED).status
    assert condition(view(line("a"), overdue_s={"a": 5.0}), CAPS_ENFORCED).reason == "NotAcknowledged"


def test_persistence_mode_that_cannot_be_turned_on_is_told() -> None:
    enforced = condition(view(line("a"), persistence={"a": "answered NO_PERMISSION"}), CAPS_ENFORCED)
    assert (enforced.status, enforced.reason) == (False, "PersistenceModeOff")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trouble": "no library"}, "NVMLUnavailable"),
        ({"contract_error": "spec.mode"}, "InvalidSpec"),
        ({"disk_error": "full"}, "StateNotDurable"),
        ({"verdict": ObjectVerdict.WRONG_UID}, "WrongUID"),
        ({"verdict": ObjectVerdict.LOWER_TERM}, "LowerTerm"),
        ({"unknown_gpus": ("x",)}, "UnknownGPUs"),
        ({"verdict": None}, "NotSynced"),
        ({"gpus": ()}, "NoGPUs"),
        ({"paused_by": "nvidia.com/gpu.deploy.dcgm=paused-for-mig-change"}, "Paused"),
        ({"gpus": (line("a", health=Health.NOT_SUPPORTED),)}, "NotSupported"),
        ({"beyond": 2}, "TooManyGPUs"),
    ],
)
def test_what_keeps_the_agent_from_its_work_is_a_reason(changes: dict[str, object], reason: str) -> None:
    ready = condition(view(line("a"), **changes), READY)
    assert (ready.status, ready.reason) == (False, reason)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"paused_by": "k=paused-for-x"}, PAUSED, "label k=paused-for-x asks"),
        ({"observing": True}, OBSERVING, "sets no limit"),
        ({"contests": {"a": Contest(700, 10)}}, FOREIGN_LIMIT, "set a to 700 W, at least 10 times in 300 s"),
    ],
)
def test_what_is_unusual_has_a_condition_of_its_own_while_it_lasts(changes: dict[str, object], kind: str, words: str) -> None:
    said = condition(view(line("a"), **changes), kind)
    assert said.status is True and words in said.message
    assert kind not in {c.type for c in report_of(view(line("a"))).conditions}


def test_paused_is_not_said_before_the_driver_is_given_back() -> None:
    closing = condition(view(paused_by="k=paused-for-x", trouble="a driver call has not returned"), PAUSED)
    assert (closing.status, closing.reason) == (False, "Closing") and "has not returned" in closing.message


def test_a_report_without_times_changes_only_with_the_facts() -> None:
    assert report_of(view(line("a"))) == report_of(view(line("a")))
    before, after = report_of(view(line("a"))), report_of(view(line("a", enforced_w=391)))
    assert before != after
    assert before.urgent_part() == after.urgent_part()
    assert before.urgent_part() != report_of(view(line("a", acked_grant=6))).urgent_part()


def test_the_wire_form_can_be_read_back_and_has_the_columns() -> None:
    report = report_of(view(line("a"), line("b", health=Health.LOST, management_w=None, enforced_w=None)))
    status = status_to_write(report, written_at="2030-01-01T00:01:00Z", previous=())
    wire = status_to_wire(status)
    assert status_from_wire(json.loads(json.dumps(wire))) == status
    assert status.gpus == report.gpus
    assert (wire["gpuCount"], wire["healthyGpuCount"]) == (2, 1)
    assert "enforcedCapWattsTotal" not in wire, "a sum with an unknown in it is unknown"


def test_the_sign_of_life_changes_the_object_and_no_transition() -> None:
    report = report_of(view(line("a")))
    first = status_to_write(report, written_at="2030-01-01T00:01:00Z", previous=())
    later = status_to_write(report, written_at="2030-01-01T00:02:00Z", previous=first.conditions)
    assert later != first
    assert [c.last_transition for c in later.conditions] == ["2030-01-01T00:01:00Z"] * 2
    lost = report_of(view(line("a", health=Health.LOST)))
    turned = status_to_write(lost, written_at="2030-01-01T00:03:00Z", previous=later.conditions)
    since = {c.type: c.last_transition for c in turned.conditions}
    assert since == {READY: "2030-01-01T00:01:00Z", CAPS_ENFORCED: "2030-01-01T00:03:00Z"}


def test_a_long_trouble_leaves_room_for_the_sign_of_life() -> None:
    report = report_of(view(line("a"), trouble="no driver " * 1000))
    ready = status_to_write(report, written_at="2030-01-01T00:01:00Z", previous=()).conditions[0]
    assert len(ready.message) == MAX_MESSAGE_CHARS
    assert ready.message.endswith(" Said at 2030-01-01T00:01:00Z.")


def test_leased_watts_are_not_used() -> None:
    grant = Grant(uuid="a", grant=1, cap_w=600, safe_cap_w=350, charge_w=700)
    seen = NodePower("n", "u", 1, Spec(term=1, for_uid="u", mode=Mode.OVERSUBSCRIBED, gpus=(grant,)))
    used = without_leased_watts(seen).spec
    assert used is not None
    assert used.gpus[0].cap_w == 350
    strict = replace(seen, spec=replace(used, mode=Mode.STRICT, gpus=(grant,)))
    assert without_leased_watts(strict) is strict


# ------------------------------------------------------------------------------------------------------ stepping over hangs


async def nothing_stuck(sweeper: Sweeper[Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while sweeper.stuck:  # noqa: ASYNC110 - the sweeper has no event to wait for, and needs none
            await asyncio.sleep(0.01)


async def test_a_sweep_steps_over_what_hangs_and_takes_it_back_afterwards() -> None:
    sweeper: Sweeper[str] = Sweeper(stall_s=0.1)
    release = threading.Event()
    hangs = {"b", "d"}

    def read(name: str) -> str:
        if name in hangs:
            release.wait(PATIENCE_S)
        return f"read {name}"

    everything = ("a", "b", "c", "d", "e")
    assert set(await sweeper.sweep(everything, read)) == {"a", "c", "e"}
    assert sweeper.stuck == hangs
    assert set(await sweeper.sweep(everything, read)) == {"a", "c", "e"}, "and at once, without waiting again"
    hangs = set()
    release.set()
    await nothing_stuck(sweeper)
    assert set(await sweeper.sweep(everything, read)) == set(everything)
    sweeper.close()


async def test_reads_at_the_edge_of_hanging_never_leave_a_name_behind() -> None:
    """The stall and the return race each other here; whoever wins, every name comes back."""
    sweeper: Sweeper[int] = Sweeper(stall_s=0.02)
    pause = threading.Event()

    def read(name: str) -> int:
        pause.wait(0.02)
        return 1

    for _ in range(30):
        await sweeper.sweep(("a", "b", "c"), read)
    await nothing_stuck(sweeper)
    sweeper.close()


async def test_a_call_in_its_own_thread_carries_its_outcome() -> None:
    def fails() -> None:
        raise NvmlError(call="x", code=pynvml.NVML_ERROR_NO_PERMISSION)

    assert await daemon_call("ok", lambda: 7) == 7
    with pytest.raises(NvmlError) as error:
        await daemon_call("fails", fails)
    assert error.value.health is Health.NO_PERMISSION


# --------------------------------------------------------------------------------------------------------------- borders


def test_socket_paths() -> None:
    assert socket_path("") is None
    assert socket_path("unix:/run/k.sock") == Path("/run/k.sock")
    assert socket_path("unix:///run/k.sock") == Path("/run/k.sock")
    with pytest.raises(ArgumentError, match="unix:PATH"):
        socket_path("/run/k.sock")


def test_pod_resources_are_read_past_unknown_fields() -> None:
    owner, other = podresources.DeviceOwner("serving", "decode-0"), podresources.DeviceOwner("x", "y")
    claim = podresources.ClaimedDevice(other, "gpu.nvidia.com", "n1", "gpu-3")
    answer = podresources.response_of({owner: ["GPU-a", "GPU-b::1"]}, resource_name="nvidia.com/gpu", claims=[claim])
    unknown_field = b"\xf2\x01\x03abc"
    message = podresources.ListPodResourcesResponse.FromString(answer.SerializeToString() + unknown_field)
    assert podresources.devices_of(message) == (
        podresources.PluginDevice(owner, "nvidia.com/gpu", "GPU-a"),
        podresources.PluginDevice(owner, "nvidia.com/gpu", "GPU-b::1"),
        claim,
    )


def test_the_clients_paths_are_those_of_the_api() -> None:
    ours = (resources.NODE_POWERS, resources.POWER_BUDGETS, resources.INFERENCE_CLUSTERS, resources.POWER_PROFILES)
    crds = Path(__file__).resolve().parents[2] / "crds"
    for resource in ours:
        assert resource.api_version == names.GROUP_VERSION
        text = (crds / f"{resource.plural}.{names.API_GROUP}.yaml").read_text()
        assert f"scope: {'Namespaced' if resource.namespaced else 'Cluster'}" in text
        assert f"kind: {resource.kind}\n" in text
    assert resources.PODS.path(namespace="a", name="b", subresource="status") == "/api/v1/namespaces/a/pods/b/status"
    with pytest.raises(ValueError, match="needs a namespace"):
        resources.PODS.path(name="b")


def test_the_agent_stays_small() -> None:
    """Heavy packages that only other rooms need must not come along."""
    heavy = ("numpy", "kopf", "grpc", "httpx", "rich")
    code = f"import sys, splitwatt_agent.__main__; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
