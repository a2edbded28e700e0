"""The agent's own Node: NVIDIA's operator asks by its labels that whoever uses the GPUs steps aside.

For a driver upgrade (k8s-driver-manager) and for a change of MIG partitions (mig-parted's manager) it sets the labels
`nvidia.com/gpu.deploy.*` of the node to `paused-for-driver-upgrade`, `paused-for-mig-change`, or the old value with such a
word behind it, waits for its own pods to leave, and puts the values back afterwards. An agent that kept NVML open would keep
the kernel module, or the GPU, from being let go of.

What it protects: nothing is raised or lowered because labels cannot be read; what they said last stands.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from splitwatt_client import Changed, Connection, Interrupted, Synced, watch
from splitwatt_client.resources import NODES

from splitwatt_agent.control import Control

log = logging.getLogger(__name__)

LABEL_PREFIX: Final = "nvidia.com/gpu.deploy."
PAUSED_WORD: Final = "paused-for-"


def pause_in(labels: Mapping[str, Any]) -> str:
    """`key=value` of the first label, by name, that asks GPU clients to step aside; "" when none does."""
    asking = (
        f"{key}={labels[key]}" for key in sorted(labels) if key.startswith(LABEL_PREFIX) and PAUSED_WORD in str(labels[key])
    )
    return next(asking, "")


async def watch_own_node(connection: Connection, control: Control, *, node: str) -> None:
    """Until cancelled."""
    async for event in watch(connection, NODES, name=node):
        match event:
            case Synced(items=(obj,)) | Changed(obj=obj):
                control.hear_pause(pause_in(obj["metadata"].get("labels") or {}))
            case Interrupted(failure=failure):
                log.warning("the labels of node %s cannot be watched: %s", node, failure)
            case _:
                pass  # a Node that is gone says nothing
