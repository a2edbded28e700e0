"""What a scenario may ask of any ground, and kubectl and helm as a site's administrator types them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
import psutil
from splitwatt_core import __version__
from splitwatt_lab.errors import LabError
from splitwatt_nvml_twin.handle import NodeTwin

GPUS: Final = 8
"""Of each simulated node."""
COMMAND_S: Final = 300.0
REGISTRY: Final = "localhost"
"""Of images that are laid on the nodes: nothing is pulled from it."""
VLLM_VARIABLE: Final = "SPLITWATT_E2E_VLLM"
"""Where the folder of real vLLM lies; empty when its scenarios are left out."""
HANDLER: Final = "nvidia"
"""The RuntimeClass by which pods get the driver."""


class NotHereError(LabError):
    """This ground does not have what the scenario needs; the scenario is left out, with this sentence."""


class Cluster(Protocol):
    """A cluster with GPUs. `runtime_class`: by which pods get the driver, empty: by none. `prometheus_url`: as pods dial it; None
    where the scenarios bring one, with meters, on this machine, which pods dial at `address_of_host`."""

    kubeconfig: Path
    scratch: Path
    address_of_host: str
    registry: str
    runtime_class: str
    prometheus_url: str | None

    @property
    def http(self) -> httpx.Client: ...

    def image(self, name: str) -> str:
        """Of ours: `agent`, `operator`, `engine`, `router` or `sim`, as pods name it."""
        ...

    def kubectl(
        self, *arguments: str | Path, stdin: str | None = None, check: bool = True, timeout_s: float = COMMAND_S
    ) -> subprocess.CompletedProcess[str]: ...

    def helm(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]: ...

    def beside(self, *arguments: str) -> AbstractContextManager[str]:
        """kubectl that runs on until the block is left; the first line that it printed."""
        ...

    def load(self, archives: Sequence[Path]) -> None:
        """Images (docker archives) onto every node."""
        ...

    def tag(self, image: str, other: str) -> None:
        """A second name for an image, on every node."""
        ...

    def nodes(self) -> Sequence[str]:
        """Those with GPUs."""
        ...

    def twin(self, node: str) -> NodeTwin:
        """The truth of a node's simulated GPUs."""
        ...

    def vllm(self) -> str:
        """The folder of real vLLM (`ground.vllm`), as every node has it."""
        ...

    def shell_of(self, address: str) -> Sequence[str]:
        """The words before a command that runs in the network of the pod at `address`."""
        ...

    def stop_api_server(self) -> None:
        """Nobody answers at its address until it is started again."""
        ...

    def start_api_server(self) -> None: ...

    def restart_kubelet(self, node: str) -> None: ...

    def restart_node(self, node: str) -> None:
        """Everything on it ends at once and begins anew, under a new boot id."""
        ...

    def close(self) -> None: ...


def vllm_folder() -> Path:
    """On this machine, as `run.prepare` left it. Raises NotHereError where its scenarios are left out."""
    folder = os.environ.get(VLLM_VARIABLE)
    if not folder:
        raise NotHereError("real vLLM was left out by E2E_VLLM=0")
    return Path(folder)


def network_of(address: str) -> Sequence[str]:
    """Of a pod of this machine. Raises LabError when no process lives there."""
    seen: set[str] = set()
    for process in psutil.process_iter():
        try:
            network = str(Path(f"/proc/{process.pid}/ns/net").readlink())
        except OSError:
            continue  # it ended
        if network in seen:
            continue
        seen.add(network)
        words = ["nsenter", "-t", str(process.pid), "-n"]
        shown = subprocess.run([*words, "ip", "-4", "-o", "addr"], capture_output=True, text=True, check=False).stdout
        if f" {address}/" in shown:
            return words
    raise LabError(f"no process of this machine has the address {address}")


class Commands:
    """kubectl and helm on one kubeconfig. They see nothing of the user's own settings. `http` is the API server for who asks many
    times a second, by `kubectl proxy`, so that any way of logging in will do."""

    def __init__(
        self,
        *,
        tools: Mapping[str, Path],
        kubeconfig: Path,
        home: Path,
        registry: str = REGISTRY,
        runtime_class: str = HANDLER,
        prometheus_url: str | None = None,
    ) -> None:
        self._tools = tools
        self.registry = registry
        self.runtime_class = runtime_class
        self.prometheus_url = prometheus_url
        self.kubeconfig = kubeconfig
        self._home = home
        home.mkdir(parents=True, exist_ok=True)
        self._proxy: subprocess.Popen[str] | None = None

    @property
    def http(self) -> httpx.Client:
        """Safe from several threads. Raises LabError when the proxy does not start."""
        if self._proxy is None:
            self._proxy = subprocess.Popen(
                [self._tools["kubectl"], "proxy", "--port=0"],
                env={"HOME": str(self._home), "KUBECONFIG": str(self.kubeconfig)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self._proxy.stdout is not None
            said = self._proxy.stdout.readline()
            if "127.0.0.1:" not in said:
                raise LabError(f"kubectl proxy did not start: {said}")
            url = f"http://{said.strip().rsplit(' ', 1)[-1]}"
            self._http = httpx.Client(base_url=url, timeout=30.0, trust_env=False)
        return self._http

    def image(self, name: str) -> str:
        return f"{self.registry}/splitwatt-{name}:{__version__}"

    @contextmanager
    def beside(self, *arguments: str) -> Iterator[str]:
        process = subprocess.Popen(
            [self._tools["kubectl"], *arguments],
            env={"HOME": str(self._home), "KUBECONFIG": str(self.kubeconfig)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        try:
            yield process.stdout.readline()
        finally:
            process.terminate()
            process.communicate()

    def end_proxy(self) -> None:
        if self._proxy is not None:
            self._http.close()
            self._proxy.terminate()
            self._proxy.wait()

    def kubectl(
        self, *arguments: str | Path, stdin: str | None = None, check: bool = True, timeout_s: float = COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """Raises LabError with kubectl's own words when `check` and it fails."""
        return self._run("kubectl", arguments, stdin=stdin, check=check, timeout_s=timeout_s)

    def helm(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Raises LabError with Helm's own words when `check` and it fails."""
        return self._run("helm", arguments, stdin=None, check=check, timeout_s=COMMAND_S)

    def _run(
        self, program: str, arguments: Sequence[str | Path], *, stdin: str | None, check: bool, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        env: dict[str, Any] = {"HOME": str(self._home), "KUBECONFIG": str(self.kubeconfig), "KUBERC": "off"}
        result = subprocess.run(
            [self._tools[program], *(str(word) for word in arguments)],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            env={**env, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and result.returncode != 0:
            raise LabError(f"{program} {' '.join(map(str, arguments))} failed: {result.stderr.strip()} {result.stdout[-1000:]}")
        return result
