"""Which pods are one replica: a pod by itself, or all pods of a group where a replica stands on several nodes.

Half a group computes nothing and holds its GPUs at floor, so a group leaves its gate whole or not at all. It is whole when as
many of its pods wait as it has nodes. Of one that is past its gate in part (a pod was made anew, or an operator died over it)
the rest follows before anything else, for what stands already waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from splitwatt_core.admission.snapshot import HeldPod, PodNeed

Replica = tuple[PodNeed, ...]


@dataclass(frozen=True, slots=True)
class RoleReplicas:
    """Of one role of one cluster. `whole`: those that wait, in the order of their first pods. `rests`: what is missing of those
    that are past the gate in part. `past`: how many are past it, in whole or in part."""

    whole: tuple[Replica, ...]
    rests: tuple[Replica, ...]
    past: int


def replicas_of(waiting: Sequence[PodNeed], held: Sequence[HeldPod], *, nodes: int) -> RoleReplicas:
    """`waiting`: in the order in which they are served. `held`: terminating ones stand for nothing any more."""
    staying = [pod.need for pod in held if not pod.terminating]
    if nodes == 1:
        return RoleReplicas(tuple((need,) for need in waiting), (), len(staying))
    past: dict[str, int] = {}
    for need in staying:
        if need.group:
            past[need.group] = past.get(need.group, 0) + 1
    groups: dict[str, list[PodNeed]] = {}
    for need in waiting:
        if need.group:
            groups.setdefault(need.group, []).append(need)
    whole = tuple(tuple(pods) for group, pods in groups.items() if group not in past and len(pods) == nodes)
    rests = tuple(tuple(pods) for group, pods in groups.items() if group in past and past[group] + len(pods) == nodes)
    return RoleReplicas(whole, rests, len(past))


def standing(held: Sequence[HeldPod], *, nodes: int) -> int:
    """Replicas that are past the gate whole, and stay."""
    staying = [pod.need.group for pod in held if not pod.terminating]
    if nodes == 1:
        return len(staying)
    return sum(staying.count(group) >= nodes for group in set(staying) - {""})


def blocks_of(pods: Sequence[PodNeed]) -> Iterator[Replica]:
    """A gang's pods, replica by replica."""
    at = 0
    while at < len(pods):
        end = at + 1
        while end < len(pods) and pods[at].group and pods[end].group == pods[at].group:
            end += 1
        yield tuple(pods[at:end])
        at = end
