"""The real chart by the real Helm, into the lab's control plane.

In the lab the operator and the agents run as processes under the chart's service accounts, so the chart is installed
with no operator replica and with an agent DaemonSet that fits no node: everything but the pods is what a site would get.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.errors import LabError

RELEASE: Final = "splitwatt"
NAMESPACE: Final = "splitwatt-system"
INSTALL_S: Final = 180.0
WITHOUT_PODS: Final[Mapping[str, Any]] = {
    "image": {"registry": "localhost"},
    "operator": {"replicas": 0},
    "agent": {"nodeSelector": {"splitwatt.io/no-such-node": "true"}},
}


def install_chart(
    plane: ControlPlane,
    chart: Path,
    *,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
    values: Mapping[str, Any] | None = None,
) -> None:
    """Install or upgrade `chart`. `values` go over WITHOUT_PODS. Raises LabError with Helm's own sentence."""
    merged = _merged(WITHOUT_PODS, values or {})
    file = plane.directory / f"{release}-values.json"
    file.write_text(json.dumps(merged))
    _helm(plane, "upgrade", release, chart, "--install", f"--namespace={namespace}", "--create-namespace", f"--values={file}")


def uninstall_chart(plane: ControlPlane, *, release: str = RELEASE, namespace: str = NAMESPACE) -> None:
    """Remove the release; what the chart keeps by policy stays. Raises LabError."""
    _helm(plane, "uninstall", release, f"--namespace={namespace}")


def _helm(plane: ControlPlane, *arguments: str | Path) -> None:
    homes = {f"HELM_{kind}_HOME": str(plane.directory / "helm" / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    try:
        result = subprocess.run(
            [plane.tools["helm"], *(str(a) for a in arguments), f"--kubeconfig={plane.kubeconfig}"],
            # Helm must see nothing of the user's own: neither repositories nor plugins nor another cluster.
            env={"HOME": str(plane.directory), **homes},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`helm {arguments[0]}` did not end within {INSTALL_S:g} s") from error
    if result.returncode != 0:
        raise LabError(f"`helm {arguments[0]}` failed: {' '.join(result.stderr.split())}")


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping, as Helm itself does with values."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result
