"""CustomResourceDefinitions of others, out of their own Go modules: what we emit is held to what they publish.

Each module is fetched by `go mod download` and must have the hash that is pinned here (`go.sum`'s h1), wherever it came from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError
from splitwatt_lab.toolbuild import download


@dataclass(frozen=True, slots=True)
class Definition:
    """`file` in the module, `crd` the name of the definition in it."""

    crd: str
    module: str
    version: str
    sum: str
    file: str


DEFINITIONS: Final[Mapping[str, Definition]] = {
    "InferencePool": Definition(
        "inferencepools.inference.networking.k8s.io",
        "sigs.k8s.io/gateway-api-inference-extension", "v1.6.0", "h1:cjtwMJYcTnLXBYE5ffR1/hHhn7U1aIFfe2RITYmOXVA=",
        "config/crd/bases/inference.networking.k8s.io_inferencepools.yaml",
    ),
    "PodMonitor": Definition(
        "podmonitors.monitoring.coreos.com",
        "github.com/prometheus-operator/prometheus-operator", "v0.92.1", "h1:rHWuFo6SVya4FBSCNg2DCzyc4xAv54zk3eDTzp5mQZc=",
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
    ),
    "PrometheusRule": Definition(
        "prometheusrules.monitoring.coreos.com",
        "github.com/prometheus-operator/prometheus-operator", "v0.92.1", "h1:rHWuFo6SVya4FBSCNg2DCzyc4xAv54zk3eDTzp5mQZc=",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
    "GrafanaDashboard": Definition(
        "grafanadashboards.grafana.integreatly.org",
        "github.com/grafana/grafana-operator/v5", "v5.24.0", "h1:7NvVn7J7hknBBWte99giWEK4TV5qYfZdvDIW8WeU3oU=",
        "config/crd/bases/grafana.integreatly.org_grafanadashboards.yaml",
    ),
    "PersesDashboard": Definition(
        "persesdashboards.perses.dev",
        "github.com/perses/perses-operator", "v0.5.0", "h1:Z9vIGpXf0R1diA/Go6UpXtG2PqvflkU6C11M4ES5JIg=",
        "config/crd/bases/perses.dev_persesdashboards.yaml",
    ),
    "LeaderWorkerSet": Definition(
        "leaderworkersets.leaderworkerset.x-k8s.io",
        "sigs.k8s.io/lws", "v0.9.0", "h1:DcJCgxjjoGOx//QHZkeKpyiblxYq70aCRZNYSfykWyI=",
        "config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml",
    ),
}  # fmt: skip
"""By kind."""


def definition_file(definition: Definition) -> Path:
    """The definition as its project has it, in Go's module cache. Raises LabError with one sentence."""
    wanted = f"{definition.module}@{definition.version}"
    with tempfile.TemporaryDirectory() as nowhere:  # no go.mod of ours is asked, or changed
        answer = download(wanted, within=Path(nowhere), wanted=wanted)
    if answer["Sum"] != definition.sum:
        raise LabError(f"{wanted} has the hash {answer['Sum']}, but {definition.sum} is pinned: it is not what it was")
    return Path(answer["Dir"]) / definition.file
