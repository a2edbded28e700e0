"""Scenes of nodes, of their GPUs, and of the disk under an agent's record."""

from __future__ import annotations

from typing import Final

from splitwatt_nvml_twin.faults import Fault as GpuFault

from splitwatt_lab.faults import expectations as say
from splitwatt_lab.faults.disks import DiskFull, DiskReadOnly, RecordTorn
from splitwatt_lab.faults.expectations import BUSY, CUT, OTHER
from splitwatt_lab.faults.nodes import (
    CapsRaisedByHand,
    DriverReloaded,
    GpuBroken,
    OutsideLimiter,
    Rebooted,
    Reset,
    SecondWriter,
)
from splitwatt_lab.faults.scene import Scene


def _clamp() -> GpuFault:
    return GpuFault.clamping_setter(700_000)


GPU: Final = (f"node:{BUSY}", f"agent:{BUSY}")

NODE_FAULTS: Final = (
    Scene(
        name="reboot", fast=True, group="nodes", hold_s=2,
        promise="Its GPUs count at their default limit; the agent lowers them to the caps on its disk as it starts.",
        faults=(Rebooted(node=BUSY, quick=True, touch=GPU, excuse=say.surprise(4)),),
    ),
    Scene(
        name="reboot-without-an-agent", group="nodes", hold_s=8,
        promise="The same, for as long as no agent runs: the reserve covers it, and the neighbours are lowered.",
        faults=(Rebooted(node=BUSY, touch=GPU, excuse=say.surprise(4)),),
    ),
    Scene(
        name="gpu-reset", fast=True, group="nodes", hold_s=4,
        promise="The agent sets the cap again at its next look (0.2 s).",
        faults=(Reset(node=BUSY, gpus=(3,), touch=GPU, excuse=say.blink(1.5)),),
    ),
    Scene(
        name="all-gpus-of-a-node-reset", group="nodes", hold_s=4,
        promise="The agent sets all eight again at its next look.",
        faults=(Reset(node=BUSY, touch=GPU, excuse=say.blink(1.5)),),
    ),
    Scene(
        name="gpus-reset-behind-a-dead-agent", group="nodes", hold_s=6,
        promise="Nobody can see it: reserveWatts covers it until the agent is back, which lowers at once.",
        faults=(Reset(node=BUSY, agent_dead=True, touch=GPU, excuse=say.surprise(3)),),
    ),
    Scene(
        name="driver-reloaded", fast=True, group="nodes", hold_s=4,
        promise="The agent opens NVML anew and sets its caps again at once.",
        faults=(DriverReloaded(node=BUSY, touch=GPU, excuse=say.blink(3)),),
    ),
    Scene(
        name="driver-reloaded-indices-reordered", group="nodes", hold_s=4,
        promise="Caps go by UUID: each GPU gets its own again.",
        faults=(DriverReloaded(node=BUSY, reorder=True, touch=GPU, excuse=say.blink(3)),),
    ),
    Scene(
        name="gpu-lost", group="nodes", cut=CUT, expects=(say.caps_not_enforced(BUSY),),
        promise="Its charge stays, for it may draw on; the others go on.",
        faults=(GpuBroken(node=BUSY, fault=GpuFault.gpu_lost, touch=GPU),),
    ),
    Scene(
        name="setter-no-permission", fast=True, group="nodes", cut=CUT, expects=(say.caps_not_enforced(BUSY, "NoPermission"),),
        promise="The charge of that GPU stays, its neighbours pay for a cut, and the condition says NoPermission.",
        faults=(GpuBroken(node=BUSY, fault=GpuFault.no_permission, touch=GPU),),
    ),
    Scene(
        name="setter-not-supported", group="nodes", cut=CUT, expects=(say.caps_not_enforced(BUSY),),
        promise="The same.",
        faults=(GpuBroken(node=BUSY, fault=GpuFault.not_supported, touch=GPU),),
    ),
    Scene(
        name="setter-lies", group="nodes", cut=CUT, expects=(say.caps_not_enforced(BUSY, "CapNotEnforced"),),
        promise="A cap counts only when it was read back: never acknowledged, so the old charge stays.",
        faults=(GpuBroken(node=BUSY, fault=GpuFault.lying_setter, touch=GPU),),
    ),
    Scene(
        name="setter-clamps-to-700-w", group="nodes", cut=CUT, expects=(say.caps_not_enforced(BUSY, "CapNotEnforced"),),
        promise="What the driver made of it is read back and charged; the neighbours make room.",
        faults=(GpuBroken(node=BUSY, fault=_clamp, touch=GPU, excuse=say.blink(7)),),
    ),
    Scene(
        name="setter-hangs", group="nodes", cut=CUT, expects=(say.caps_not_enforced(BUSY, "CallHung"),),
        promise="Nothing of that GPU is acknowledged; all others go on.",
        faults=(GpuBroken(node=BUSY, fault=GpuFault.hang, touch=GPU),),
    ),
    Scene(
        name="outside-limiter-lets-go", group="nodes", cut=CUT,
        promise="Management and enforced limit both count: what a limiter hid was charged all along.",
        faults=(
            GpuBroken(node=BUSY, fault=GpuFault.lying_setter, touch=GPU),
            OutsideLimiter(node=BUSY, watts=250),
        ),
    ),
    Scene(
        name="second-writer", group="nodes", hold_s=14, expects=(say.foreign_limit(BUSY),),
        promise="The agent lowers again at its next look, and names the GPU that somebody else sets.",
        faults=(SecondWriter(node=BUSY, watts=650, touch=GPU, excuse=say.blink(1e6)),),
    ),
    Scene(
        name="caps-raised-by-hand", fast=True, group="self-test", hold_s=4, paired=False, convicted=True,
        promise="No promise: the runner must convict this, or nothing that it acquits is proven.",
        faults=(CapsRaisedByHand(node=BUSY, touch=GPU),),
    ),
)  # fmt: skip

DISKS: Final = (
    Scene(
        name="disk-full", group="disks", cut=CUT, expects=(say.not_durable(BUSY),),
        promise="Caps are only lowered, and the last durable record stays whole.",
        faults=(DiskFull(node=BUSY, touch=(f"agent:{BUSY}", f"node:{BUSY}")),),
    ),
    Scene(
        name="disk-read-only", group="disks", cut=CUT, expects=(say.not_durable(BUSY),),
        promise="The same.",
        faults=(DiskReadOnly(node=BUSY, touch=(f"agent:{BUSY}", f"node:{BUSY}")),),
    ),
    Scene(
        name="disk-full-and-a-reboot", group="disks", hold_s=10, cut=CUT, expects=(say.not_durable(BUSY),),
        promise="The agent goes on in memory, and lowers to the caps on its disk and to every grant that lowers.",
        faults=(
            DiskFull(node=BUSY, touch=(f"agent:{BUSY}", f"node:{BUSY}")),
            Rebooted(node=BUSY, quick=True, excuse=say.blink(5)),
        ),
    ),
    Scene(
        name="state-folder-empty-and-full", group="disks", hold_s=8, expects=(say.not_durable(BUSY),),
        promise="The agent starts without a record, says so, and lowers to every grant that lowers.",
        faults=(DiskFull(node=BUSY, empty=True, touch=(f"agent:{BUSY}", f"node:{BUSY}")),),
    ),
    Scene(
        name="record-torn", group="disks", hold_s=4, steady=OTHER,
        promise="The agent says which file it cannot understand and what to do, and ends with 1; caps stay in the driver.",
        faults=(RecordTorn(node=BUSY, touch=(f"agent:{BUSY}", f"node:{BUSY}"), ends=((f"agent-{BUSY}", 1),)),),
    ),
)  # fmt: skip
