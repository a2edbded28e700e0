"""Any cluster that a kubeconfig leads to. Its GPUs are what they are: scenarios that need their truth, which is most of them, are
left out there. Images, Prometheus, meters and a device plugin are its owner's.

Nothing is touched unless the caller was told that it may be. The warnings come first, on the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from splitwatt_lab.errors import LabError
from splitwatt_lab.toolbuild import ensure_tools
from splitwatt_nvml_twin.handle import NodeTwin

from ground.cluster import Commands, NotHereError

WARNINGS: Final = """\
This run changes the cluster of {kubeconfig} (context {context}, server {server}):
  - it installs Splitwatt's chart with its CustomResourceDefinitions, which stay, and namespaces splitwatt-system, serving, lab;
  - it sets power limits of every GPU on nodes labelled nvidia.com/gpu.present=true, and leaves the last ones when it ends;
  - it applies the README's PowerBudgets: nodes labelled splitwatt.io/rack=a1 get caps by them;
  - it kills Splitwatt's pods. It restarts no node and no kubelet here. Splitwatt and its budgets stay when it ends.
Do not run it where anything matters.
"""


@dataclass(frozen=True, slots=True)
class Theirs:
    """What the owner of a cluster says of it. `may_change`: the run may change it. `registry`: where our images were pushed."""

    may_change: bool = False
    registry: str = ""
    prometheus_url: str = ""
    runtime_class: str = ""


class KubeconfigCluster(Commands):
    """Raises LabError where the owner did not say enough, after the warnings."""

    def __init__(self, kubeconfig: Path, scratch: Path, theirs: Theirs) -> None:
        if not kubeconfig.is_file():
            raise LabError(f"there is no kubeconfig {kubeconfig}; give node, kind or the path of one")
        self.scratch = scratch
        self.address_of_host = ""
        (scratch / "logs").mkdir(parents=True, exist_ok=True)
        super().__init__(
            tools=ensure_tools().paths,
            kubeconfig=kubeconfig,
            home=scratch / "home",
            registry=theirs.registry,
            runtime_class=theirs.runtime_class,
            prometheus_url=theirs.prometheus_url,
        )
        config = json.loads(self.kubectl("config", "view", "--minify", "-o", "json").stdout)
        server = config["clusters"][0]["cluster"]["server"]
        sys.stderr.write(WARNINGS.format(kubeconfig=kubeconfig, context=config["current-context"], server=server))
        if not theirs.may_change:
            raise LabError("nothing was touched: add --may-change when this cluster may be changed so")
        if not theirs.registry or not theirs.prometheus_url:
            raise LabError(
                "nothing was touched: --registry says where `make images` pushed to, --prometheus who scrapes the cluster"
            )

    def load(self, archives: Sequence[Path]) -> None:
        self._not_here("images come from a registry")

    def tag(self, image: str, other: str) -> None:
        self._not_here("images come from a registry")

    def nodes(self) -> Sequence[str]:
        found = json.loads(self.kubectl("get", "nodes", "-l", "nvidia.com/gpu.present=true", "-o", "json").stdout)["items"]
        return [each["metadata"]["name"] for each in found]

    def twin(self, node: str) -> NodeTwin:
        self._not_here(f"the GPUs of {node} are not simulated")

    def vllm(self) -> str:
        self._not_here("no node has a folder of real vLLM")

    def shell_of(self, address: str) -> Sequence[str]:
        self._not_here("its pods live on other machines")

    def stop_api_server(self) -> None:
        self._not_here("the API server is not ours to stop")

    def start_api_server(self) -> None:
        self._not_here("the API server is not ours to start")

    def restart_kubelet(self, node: str) -> None:
        self._not_here(f"the kubelet of {node} is not ours to restart")

    def restart_node(self, node: str) -> None:
        self._not_here(f"{node} is not ours to restart")

    def close(self) -> None:
        self.end_proxy()

    def _not_here(self, why: str) -> NoReturn:
        raise NotHereError(f"{why}: this scenario runs on node and kind alone")
