"""How many replicas a role has whose scale is an object of its own: the InferenceCluster's word or the object's.

A CustomResourceDefinition has one scale, and an InferenceCluster's is decode's replicas. Prefill's is a RoleScale, which people
and autoscalers scale. The rule: **the most recent change wins.** The RoleScale carries the cluster's number as it was when the
two last agreed (`declared`). As long as the cluster still says that number it has not spoken since, however often it is
applied again, and the RoleScale's own holds. Once it says another one, that holds, and is written to the RoleScale in one write
with the new `declared`. Of changes of both between two looks, which nobody saw in order, the cluster's counts: it is what was
written down, and an autoscaler speaks again in a moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from splitwatt_core.clusters import ClusterSpec, Role
from splitwatt_core.names import ANNOTATION_DECLARED_REPLICAS, GROUP_VERSION
from splitwatt_core.rendering.objects import Manifest, made

SCALED_ROLE: Final = Role.PREFILL
"""Decode has the InferenceCluster's own scale; a second one would be a second truth."""
ROLE_WORD: Final = "Prefill"


@dataclass(frozen=True, slots=True)
class ScaleFact:
    """What a RoleScale says. `owner`: the uid of the InferenceCluster that controls it, None: nobody. `declared`: see above;
    None where somebody took it out."""

    replicas: int
    declared: int | None
    owner: str | None


def replicas_in_force(declared: int, scale: ScaleFact | None) -> int:
    """`declared`: what the InferenceCluster says now; `scale`: its RoleScale. One that has forgotten what was declared holds."""
    if scale is None or (scale.declared is not None and scale.declared != declared):
        return declared
    return scale.replicas


def heard(declared: int, scale: ScaleFact) -> bool:
    """Whether the RoleScale has taken in what the cluster says now."""
    return scale.declared == declared


def role_scale(cluster: ClusterSpec, declared: int) -> Manifest:
    """A new one, which says what the cluster does."""
    spec = {"cluster": cluster.name, "role": ROLE_WORD, "replicas": declared}
    manifest = made(cluster, GROUP_VERSION, "RoleScale", SCALED_ROLE, {"spec": spec})
    metadata = {**manifest["metadata"], "annotations": {ANNOTATION_DECLARED_REPLICAS: str(declared)}}
    return {**manifest, "metadata": metadata}
