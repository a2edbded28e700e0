"""Programs that make a machine a node, and kind: built from pinned Go modules like the control plane's, a set of their own.

`python -m ground.tools` has them ready (`make e2e-tools`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError
from splitwatt_lab.toolbuild import Console, Progress, ensure_built, silent
from splitwatt_lab.toolchain import Tool, tools_directory

PINS: Final = Path(__file__).resolve().parents[1] / "tools"
_KUBERNETES: Final = "k8s.io/kubernetes"
_KIND: Final = "sigs.k8s.io/kind"

TOOLS: Final = (
    *(Tool(name, "kubernetes", f"{_KUBERNETES}/cmd/{name}", _KUBERNETES, root=PINS) for name in ("kubelet", "kube-proxy")),
    Tool("kubeadm", "kubernetes", f"{_KUBERNETES}/cmd/kubeadm", _KUBERNETES, ("version",), root=PINS),
    Tool("kind", "kind", _KIND, _KIND, ("version",), root=PINS),
)
FOR_NODE: Final = ("kubelet", "kube-proxy")


def ensure(*, names: tuple[str, ...] | None = None, progress: Progress = silent) -> Mapping[str, Path]:
    """Programs by name (`names` None: all), built where none was found. Raises LabError with one sentence."""
    wanted = [tool for tool in TOOLS if names is None or tool.name in names]
    return ensure_built(wanted, tools_directory(TOOLS, PINS), progress)


def main() -> int:
    try:
        paths = ensure(progress=Console())
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stderr.write(f"programs of a node ready in {', '.join(sorted({str(path.parent) for path in paths.values()}))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
