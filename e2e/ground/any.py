"""Any cluster that a kubeconfig leads to. Its GPUs are what they are: scenarios that need their truth are left out there.

Nothing is touched unless the caller was told that it may be. The warnings come first, on the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from splitwatt_lab.errors import LabError
from splitwatt_lab.toolbuild import ensure_tools
from splitwatt_nvml_twin.handle import NodeTwin

from ground.cluster import Commands

WARNINGS: Final = """\
This run changes the cluster of {kubeconfig} (context {context}, server {server}):
  - it installs Splitwatt's chart with its CustomResourceDefinitions, which stay, and namespaces splitwatt-system and serving;
  - it sets power limits of every GPU on nodes labelled nvidia.com/gpu.present=true, and leaves the last ones when it ends;
  - it kills Splitwatt's pods. It restarts no node and no kubelet here.
Do not run it where anything matters.
"""


class KubeconfigCluster(Commands):
    """`may_change`: somebody said so. Raises LabError otherwise, after the warnings."""

    def __init__(self, kubeconfig: Path, scratch: Path, *, may_change: bool, address_of_host: str) -> None:
        if not kubeconfig.is_file():
            raise LabError(f"there is no kubeconfig {kubeconfig}; give node, kind or the path of one")
        self.scratch = scratch
        self.address_of_host = address_of_host
        super().__init__(tools=ensure_tools().paths, kubeconfig=kubeconfig, home=scratch / "home")
        config = json.loads(self.kubectl("config", "view", "--minify", "-o", "json").stdout)
        server = config["clusters"][0]["cluster"]["server"]
        sys.stderr.write(WARNINGS.format(kubeconfig=kubeconfig, context=config["current-context"], server=server))
        if not may_change:
            raise LabError("nothing was touched: add --may-change when this cluster may be changed so")

    def load(self, archives: Sequence[Path]) -> None:
        """A cluster of somebody's pulls from a registry."""
        raise LabError(f"push {', '.join(each.stem for each in archives)} to a registry that this cluster pulls from")

    def nodes(self) -> Sequence[str]:
        found = json.loads(self.kubectl("get", "nodes", "-l", "nvidia.com/gpu.present=true", "-o", "json").stdout)["items"]
        return [each["metadata"]["name"] for each in found]

    def twin(self, node: str) -> NodeTwin:
        self._not_here(f"the GPUs of {node} are not simulated")

    def restart_kubelet(self, node: str) -> None:
        self._not_here(f"the kubelet of {node} is not ours to restart")

    def restart_node(self, node: str) -> None:
        self._not_here(f"{node} is not ours to restart")

    def close(self) -> None:
        self.end_proxy()

    def _not_here(self, why: str) -> NoReturn:
        raise LabError(f"{why}: this scenario runs on node and kind alone")
