"""Labels by which other people's serving says what a pod does, and which pods are one replica.

Each is set by its project's own controller or guide; none was made for us, so what they say is taken as the word of whoever
owns the pod. It says a phase, a model and a group, never a priority. A value that is not listed here says nothing. An engine
that does both phases is taken for prefill, as a mixed pod of ours is.

Sources, by repository and path:

- llm-d: llm-d/llm-d-router `pkg/epp/framework/plugins/scheduling/filter/bylabel/roles.go` (RoleLabel and its values); the model
  in llm-d/llm-d-model-service `internal/controller/child_resources.go`. KServe's LLMInferenceService sets the same role label:
  kserve/kserve `pkg/controller/v1alpha1/llmisvc/workload_single_node.go`.
- Dynamo: ai-dynamo/dynamo `deploy/operator/internal/consts/consts.go` (KubeLabelDynamoComponentType, ...SubComponentType).
- RBG: sgl-project/rbg `api/workloads/constants/label.go` (RoleNameLabelKey, RoleInstanceIDLabelKey); before v1alpha2 the role
  was `rolebasedgroup.workloads.x-k8s.io/role`. Names of roles are the user's own: prefill and decode are the usual ones.
- Kthena: volcano-sh/kthena `pkg/apis/workload/v1alpha1/labels.go` (RoleLabelKey, GroupNameLabelKey, RoleIDKey).
- AIBrix: vllm-project/aibrix `pkg/controller/constants/stormservice.go` (RoleNameLabelKey, StormServiceNameLabelKey,
  PodSetNameLabelKey); the model in `pkg/constants/model.go` (ModelNameLabel).
- LeaderWorkerSet: kubernetes-sigs/lws `api/leaderworkerset/v1/leaderworkerset_types.go` (GroupUniqueHashLabelKey), set on the
  leader and on every worker of one replica by `pkg/webhooks/pod_webhook.go`.
- Grove: ai-dynamo/grove `operator/api/common/labels.go` (LabelPodCliqueScalingGroup, ...ReplicaIndex).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from splitwatt_core.names import LABEL_GROUP, LABEL_LLMD_ROLE
from splitwatt_core.protocol.contract import Phase


@dataclass(frozen=True, slots=True)
class RoleLabel:
    """`phases`: what each value of label `key` says. `beside`: a label that must be there as well, where `key` alone could be
    anybody's. `both`: the values of an engine that does both phases."""

    project: str
    key: str
    phases: Mapping[str, Phase]
    beside: str = ""
    both: frozenset[str] = frozenset()

    def phase_of(self, labels: Mapping[str, str]) -> Phase | None:
        return self.phases.get(labels.get(self.key, "")) if not self.beside or self.beside in labels else None


@dataclass(frozen=True, slots=True)
class GroupLabels:
    """Pods of a namespace with the same values of all `keys` are one replica."""

    project: str
    keys: tuple[str, ...]


_SPLIT: Final = MappingProxyType({"prefill": Phase.PREFILL, "decode": Phase.DECODE})
_LLMD_BOTH: Final = frozenset({"both", "prefill-decode", "encode-prefill-decode"})
_LLMD: Final = MappingProxyType({**_SPLIT, "encode-prefill": Phase.PREFILL, **dict.fromkeys(_LLMD_BOTH, Phase.PREFILL)})

ROLE_LABELS: Final = (
    RoleLabel("llm-d, KServe", LABEL_LLMD_ROLE, _LLMD, both=_LLMD_BOTH),
    RoleLabel("Dynamo", "nvidia.com/dynamo-sub-component-type", _SPLIT),
    RoleLabel("Dynamo", "nvidia.com/dynamo-component-type", _SPLIT),
    RoleLabel("RBG", "rbg.workloads.x-k8s.io/role-name", _SPLIT),
    RoleLabel("RBG", "rolebasedgroup.workloads.x-k8s.io/role", _SPLIT),
    RoleLabel("Kthena", "modelserving.volcano.sh/role", _SPLIT),
    RoleLabel("AIBrix", "role-name", _SPLIT, beside="storm-service-name"),
)
"""Of several that a pod has the first one counts."""
MODEL_LABELS: Final = ("llm-d.ai/model", "model.aibrix.ai/name")
GROUP_LABELS: Final = (
    GroupLabels("Splitwatt", (LABEL_GROUP,)),
    GroupLabels("LeaderWorkerSet", ("leaderworkerset.sigs.k8s.io/group-key",)),
    GroupLabels("Grove", ("grove.io/podcliquescalinggroup", "grove.io/podcliquescalinggroup-replica-index")),
    GroupLabels("RBG", ("rbg.workloads.x-k8s.io/role-instance-id",)),
    GroupLabels(
        "Kthena", ("modelserving.volcano.sh/group-name", "modelserving.volcano.sh/role", "modelserving.volcano.sh/role-id")
    ),
    GroupLabels("AIBrix", ("stormservice.orchestration.aibrix.ai/podset-name",)),
)
"""Of several that a pod has the first one counts."""


def roles_of(labels: Mapping[str, str]) -> Iterator[tuple[RoleLabel, Phase]]:
    """Every known role label of a pod that says a phase, the one that counts first."""
    for known in ROLE_LABELS:
        phase = known.phase_of(labels)
        if phase is not None:
            yield known, phase


def model_of(labels: Mapping[str, str]) -> str:
    """ "" where no known label names one."""
    return next((labels[key] for key in MODEL_LABELS if labels.get(key)), "")


def group_of(labels: Mapping[str, str]) -> str:
    """Of which replica in its namespace a pod is a part; "" where nobody says."""
    for known in GROUP_LABELS:
        values = [labels.get(key, "") for key in known.keys]
        if all(values):
            return "/".join((known.keys[0], *values))
    return ""
