"""Scenes of processes: operator, agents, Prometheus, API server and etcd, away, stopped, cut off, or with a wrong clock."""

from __future__ import annotations

from typing import Final

from splitwatt_lab.faults import expectations as say
from splitwatt_lab.faults.expectations import BUSY, CUT, GRACE_S, NODES, OTHER, START_S, SUCCESSOR_S
from splitwatt_lab.faults.processes import ClockStepped, Killed, Partitioned, RolledOut, Standby, Stopped
from splitwatt_lab.faults.scene import API_SERVER, Scene

AGENTS: Final = tuple(f"agent-{node}" for node in NODES)
ALL: Final = tuple(f"agent:{node}" for node in NODES)
CAPS_STAY: Final = "Caps stay where they are"

PROCESSES: Final = (
    Scene(
        name="operator-killed", group="processes", hold_s=4, cut=CUT,
        promise=f"{CAPS_STAY}; started again in its place, it takes the Lease at once, and only then acts on a cut.",
        faults=(Killed(names=("operator",), touch=("operator",), excuse=say.unseen_cut(SUCCESSOR_S)),),
    ),
    Scene(
        name="operator-stopped-20s", group="processes", hold_s=20, cut=CUT,
        promise="A stopped operator writes nothing until it holds its Lease again; then it acts on a cut.",
        faults=(Stopped(names=("operator",), touch=("operator",), excuse=say.unseen_cut(SUCCESSOR_S)),),
    ),
    Scene(
        name="operator-terminated", fast=True, group="processes", hold_s=2, cut=CUT,
        promise=f"{CAPS_STAY}, the Lease is given up, and the process ends with 0.",
        faults=(RolledOut(names=("operator",), touch=("operator",), excuse=say.unseen_cut(GRACE_S + START_S)),),
    ),
    Scene(
        name="leader-killed-beside-standby", group="processes", hold_s=20, cut=CUT,
        promise="The standby takes the Lease about 15 s after its last renewal, with a higher term.",
        faults=(Standby(fault=Killed(names=("operator",)), touch=("operator",), excuse=say.unseen_cut(SUCCESSOR_S)),),
    ),
    Scene(
        name="leader-stopped-beside-standby", group="processes", hold_s=22, cut=CUT,
        promise="The standby takes over; the older leader wakes, finds a higher term and ends with code 3.",
        faults=(
            Standby(
                fault=Stopped(names=("operator",)), leader_ends=True, touch=("operator",),
                ends=(("operator", 3),), excuse=say.unseen_cut(SUCCESSOR_S),
            ),
        ),
    ),
    Scene(
        name="agent-killed", group="processes", cut=CUT, expects=(say.acks_late(CUT),),
        promise="Its caps and its charge stay; neighbours make room for a cut, and the budget names the node.",
        faults=(Killed(names=(f"agent-{BUSY}",), touch=(f"agent:{BUSY}",)),),
    ),
    Scene(
        name="agent-stopped-20s", group="processes", hold_s=20, cut=CUT, expects=(say.acks_late(CUT),),
        promise="As with one that was killed; it goes on where it stopped.",
        faults=(Stopped(names=(f"agent-{BUSY}",), touch=(f"agent:{BUSY}",)),),
    ),
    Scene(
        name="all-agents-killed", group="processes", hold_s=4, steady=OTHER,
        promise=f"{CAPS_STAY}, and all charges; started again, the agents acknowledge what they had acknowledged.",
        faults=(Killed(names=AGENTS, touch=ALL),),
    ),
    Scene(
        name="all-agents-killed-and-a-cut", group="processes", hold_s=6, cut=CUT, steady=OTHER,
        promise="A cut is kept once the agents are back; GPUs of the rack that nobody cut keep their caps.",
        faults=(Killed(names=AGENTS, touch=ALL, excuse=say.deaf_agents(GRACE_S)),),
    ),
    Scene(
        name="all-agents-stopped-20s", group="processes", hold_s=20, cut=CUT, steady=OTHER,
        promise="A cut is kept once they go on.",
        faults=(Stopped(names=AGENTS, touch=ALL, excuse=say.deaf_agents(GRACE_S)),),
    ),
    Scene(
        name="agents-rolled-out", group="processes", hold_s=2, steady=OTHER,
        promise="A DaemonSet rollout moves no cap.",
        faults=(RolledOut(names=AGENTS, touch=ALL),),
    ),
    Scene(
        name="agents-rolled-out-while-a-limit-changes", group="processes", hold_s=3, cut=CUT, steady=OTHER,
        promise="A rollout that meets a changed limit lowers only what the limit asks for.",
        faults=(RolledOut(names=AGENTS, together=True, touch=ALL, excuse=say.deaf_agents(GRACE_S)),),
    ),
    Scene(
        name="prometheus-killed", group="processes", hold_s=10, cut=CUT, expects=(say.stale(CUT),),
        promise="Nothing is raised below a meter that is silent; lowering goes on.",
        faults=(Killed(names=("prometheus",), touch=("prometheus",)),),
    ),
    Scene(
        name="prometheus-stopped-20s", group="processes", hold_s=20, cut=CUT, expects=(say.stale(CUT),),
        promise="The same while it accepts connections and never answers.",
        faults=(Stopped(names=("prometheus",), touch=("prometheus",)),),
    ),
    Scene(
        name="apiserver-killed", group="processes", hold_s=15, cut=CUT, cut_healed=True,
        promise=f"{CAPS_STAY} while it is away; watches come back, and a cut right after is obeyed.",
        faults=(Killed(names=("kube-apiserver",), touch=(API_SERVER,), excuse=say.unseen_cut(SUCCESSOR_S)),),
    ),
    Scene(
        name="apiserver-stopped-25s", group="processes", hold_s=25, cut=CUT, cut_healed=True,
        promise="The same while it accepts connections and never answers; nobody stays wedged.",
        faults=(Stopped(names=("kube-apiserver",), touch=(API_SERVER,), excuse=say.unseen_cut(SUCCESSOR_S)),),
    ),
    Scene(
        name="etcd-killed", group="processes", hold_s=15, cut=CUT, cut_healed=True,
        promise=f"{CAPS_STAY} while it is away; a cut right after its return is obeyed.",
        faults=(Killed(names=("etcd",), touch=(API_SERVER,), excuse=say.unseen_cut(SUCCESSOR_S)),),
    ),
    Scene(
        name="etcd-stopped-20s", group="processes", hold_s=20, cut=CUT, cut_healed=True,
        promise="The same while it never answers.",
        faults=(Stopped(names=("etcd",), touch=(API_SERVER,), excuse=say.unseen_cut(SUCCESSOR_S)),),
    ),
    Scene(
        name="agent-partitioned", group="processes", hold_s=12, cut=CUT, expects=(say.acks_late(CUT),),
        promise="An agent that reaches nobody holds its caps; neighbours make room.",
        faults=(Partitioned(names=(f"agent-{BUSY}",), touch=(f"agent:{BUSY}",)),),
    ),
    Scene(
        name="all-agents-partitioned", group="processes", hold_s=12, cut=CUT,
        promise="Caps hold; a cut is kept once they are reached again.",
        faults=(Partitioned(names=AGENTS, touch=ALL, excuse=say.deaf_agents(GRACE_S + 5)),),
    ),
    Scene(
        name="operator-partitioned", group="processes", hold_s=20, cut=CUT, cut_healed=True,
        promise="An operator that reaches nobody loses its Lease and writes nothing; it takes it again afterwards.",
        faults=(Partitioned(names=("operator",), touch=("operator",), excuse=say.unseen_cut(SUCCESSOR_S)),),
    ),
    Scene(
        name="operator-clock-5s-ahead", group="processes", hold_s=10, cut=CUT,
        promise="Leases are held by the monotonic clock; samples look stale, which costs watts and no promise.",
        faults=(ClockStepped(names=("operator",), step_s=5.0, touch=("operator",)),),
    ),
    Scene(
        name="operator-clock-5s-behind", group="processes", hold_s=10, cut=CUT,
        promise="Stale readings pass for fresh by as much; the ledger bounds what may be granted.",
        faults=(ClockStepped(names=("operator",), step_s=-5.0, touch=("operator",), excuse=say.unseen_cut(GRACE_S)),),
    ),
    Scene(
        name="agents-clocks-5s-ahead", group="processes", hold_s=8, cut=CUT,
        promise="An agent measures time by its monotonic clock; nothing moves.",
        faults=(ClockStepped(names=AGENTS, step_s=5.0, touch=ALL),),
    ),
    Scene(
        name="agents-clocks-5s-behind", group="processes", hold_s=8, cut=CUT,
        promise="The same backwards.",
        faults=(ClockStepped(names=AGENTS, step_s=-5.0, touch=ALL),),
    ),
)  # fmt: skip
