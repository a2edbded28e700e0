"""Simulated GPUs for the pods of a real container runtime, as NVIDIA's runtime does it, in small.

A pod of RuntimeClass `nvidia` gets the host's libnvidia-ml.so.1 mounted, and nothing else: here the simulated one, with the
folder of the node's state. containerd does that by a runtime handler whose `base_runtime_spec` has the mounts. A hook lays the
node's boot id over the kernel's, for every simulated node runs on one kernel and is rebooted without it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from splitwatt_nvml_twin.build import LIBRARY_NAME, ensure_library
from splitwatt_nvml_twin.handle import STATE_FILE_VARIABLE, NodeTwin
from splitwatt_nvml_twin.models import H100_SXM

from ground.cluster import GPUS, HANDLER

IN_POD: Final = "/run/nvml-twin"
STATE_FILE: Final = "state"
BOOT_ID_FILE: Final = "boot_id"
_HOOK_FILE: Final = "lay-boot-id"
_HOOK: Final = """#!/bin/sh
bundle=$(sed 's/.*"bundle": *"\\([^"]*\\)".*/\\1/')
exec mount --bind "$(dirname "$0")/boot_id" "$bundle/rootfs/proc/sys/kernel/random/boot_id"
"""
LIBRARY_FOLDER: Final = f"/usr/lib/{platform.machine()}-linux-gnu"

RUNTIME_CLASS: Final[Mapping[str, Any]] = {
    "apiVersion": "node.k8s.io/v1",
    "kind": "RuntimeClass",
    "metadata": {"name": HANDLER},
    "handler": HANDLER,
}


def make_twin(folder: Path, *, node: str, boot_id: str) -> NodeTwin:
    """A node's simulated GPUs, idle, in `folder`, with the library beside the state."""
    folder.mkdir(parents=True)
    library = folder / LIBRARY_NAME
    library.write_bytes((ensure_library() / LIBRARY_NAME).read_bytes())
    library.chmod(0o755)
    (folder / BOOT_ID_FILE).write_text(f"{boot_id}\n")
    (folder / _HOOK_FILE).write_text(_HOOK)
    (folder / _HOOK_FILE).chmod(0o755)
    twin = NodeTwin.create(folder / STATE_FILE, gpus=[H100_SXM] * GPUS, boot_id=boot_id, node_name=node)
    (folder / STATE_FILE).chmod(0o666)  # engines run under users of their own
    return twin


def base_spec(default: Mapping[str, Any], *, twin_folder: str) -> str:
    """`default` is what `ctr oci spec` prints; `twin_folder` where the node has it. Rlimits are left out: raising them is not
    every container's right."""
    spec = json.loads(json.dumps(default))
    spec["process"].pop("rlimits", None)
    spec["process"].setdefault("env", []).append(f"{STATE_FILE_VARIABLE}={IN_POD}/{STATE_FILE}")
    spec["mounts"] += [
        {
            "destination": f"{LIBRARY_FOLDER}/{LIBRARY_NAME}",
            "type": "bind",
            "source": f"{twin_folder}/{LIBRARY_NAME}",
            "options": ["rbind", "ro", "nosuid", "nodev"],
        },
        {"destination": IN_POD, "type": "bind", "source": twin_folder, "options": ["rbind", "rw", "nosuid", "nodev"]},
    ]
    spec["hooks"] = {"createContainer": [{"path": f"{twin_folder}/{_HOOK_FILE}"}]}
    return json.dumps(spec)
