"""What would have to change, by the reason of a condition: a command, or a sentence where only people can do it. Pure.

`{name}`: the object's; `{namespace}`: an InferenceCluster's. A reason that is not here is answered by its own message, for those
say what to change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

REMEDIES: Final[Mapping[str, str]] = {
    "Adopting": "wait: its GPUs are being brought under acknowledged caps, which takes seconds",
    "AcknowledgementsLate": "kubectl get np   # ENFORCED=False names the agents that are late",
    "ChargedAboveLimit": "wait some seconds for caps to fall; if it stays, splitwatt doctor",
    "Contradicted": "splitwatt doctor   # compares the meter with the agents and knows wrong units",
    "Frozen": 'kubectl patch pb {name} --type=merge -p \'{{"spec":{{"frozen":false}}}}\'',
    "GpusNotCapped": "kubectl get np -o wide   # then drain and reset the GPU, or give the agent its rights",
    "InsufficientGPUs": "kubectl scale ic {name} -n {namespace} --replicas=N   # fewer decode replicas, or add nodes",
    "InsufficientPower": "kubectl scale ic {name} -n {namespace} --replicas=N   # or raise limitWatts of the budget it names",
    "InvalidSelector": "kubectl edit pb {name}   # spec.meter.selector",
    "InvalidSpec": "kubectl edit {kind} {name}   # the message names the field",
    "LeafGone": "apply the deleted budget again, or kubectl annotate np NODE splitwatt.io/release=all",
    "MeasuredAboveLimit": "find what draws the watts: splitwatt explain node NODE, and the meter itself (splitwatt doctor)",
    "MeterStale": "splitwatt doctor   # asks the meter itself, and knows why it is silent",
    "MinimumCapsAboveLimit": 'kubectl patch pb {name} --type=merge -p \'{{"spec":{{"limitWatts":N}}}}\'   # or take nodes away',
    "Missed": "splitwatt explain ic {name} -n {namespace}   # caps, replicas or load; its budgets say whether watts are short",
    "NoAgent": "splitwatt doctor   # says on which nodes, and whether they are not scraped or not there",
    "NoMatchingNodes": "kubectl get nodes --show-labels   # spec.<role>.nodeSelector must match nodes of a leaf budget",
    "NoNodes": "kubectl label node NODE KEY=VALUE   # as spec.nodeSelector asks",
    "NonGpuUnderDeclared": "kubectl edit pb {name}   # raise nonGpuWattsPerNode or fixedWatts to what the message says",
    "NotReached": "kubectl get np   # agents that do not answer; nodes that are excluded, budgets that are frozen",
    "OverlappingSelectors": "kubectl edit pb {name}   # make the nodeSelectors disjoint",
    "Releasing": "wait: kubectl wait pb {name} --for=condition=CapsReleased --timeout=15m",
    "SafeCapsAboveLimit": "kubectl edit pb {name}   # lower policy.safeCapWatts at the root, or raise limitWatts",
    "UnknownOwner": "splitwatt doctor   # PodResources must be readable on that node",
    "WaitingForTurn": "wait for the cluster that comes first, or raise spec.priority above it",
    "WouldCut": "nothing has to: docs/observe.md says what to look at before mode: Strict",
    "WouldHoldPods": "before mode: Strict raise limitWatts, or move those pods (docs/observe.md)",
}


def remedy(reason: str, *, kind: str, name: str, namespace: str = "") -> str:
    """ "" where the condition's own message has to do."""
    return REMEDIES.get(reason, "").format(kind=kind, name=name, namespace=namespace)
