"""The real Helm on the real chart; a control plane of its own, for installing claims cluster-wide names."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml
from splitwatt_lab import nodes
from splitwatt_lab.components import Component
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.install import NAMESPACE, install_chart
from splitwatt_lab.toolbuild import Console, ensure_tools
from support.waiting import eventually

CHART = Path(__file__).resolve().parents[2] / "helm" / "splitwatt"
PLATFORMS = sorted((CHART / "platforms").glob("*.yaml"))
REGISTRY = "registry.example.com/team"
NODES = ("n1", "n2")


class Helm(Protocol):
    def __call__(self, *arguments: str | Path, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm without a cluster and without anything of the user's."""
    program, home = ensure_tools(Console())["helm"], tmp_path_factory.mktemp("helm")

    def run(*arguments: str | Path, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *map(str, arguments), *(["--values=-"] if values is not None else [])],
            input=None if values is None else json.dumps(values),
            env={"HOME": str(home), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


class Render(Protocol):
    def __call__(self, *arguments: str, values: Mapping[str, Any] | None = None) -> dict[tuple[str, str], dict[str, Any]]: ...


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """The chart's objects by (kind, name)."""

    outputs: dict[tuple[object, ...], str] = {}

    def run(*arguments: str, values: Mapping[str, Any] | None = None) -> dict[tuple[str, str], dict[str, Any]]:
        given = {"image": {"registry": REGISTRY}} | dict(values or {})
        asked = (arguments, json.dumps(given))
        if asked not in outputs:
            result = helm("template", "splitwatt", CHART, f"--namespace={NAMESPACE}", *arguments, values=given)
            assert result.returncode == 0, result.stderr
            outputs[asked] = result.stdout
        documents = [document for document in yaml.load_all(outputs[asked], yaml.CSafeLoader) if document]
        found = {(document["kind"], document["metadata"]["name"]): document for document in documents}
        assert len(found) == len(documents)
        return found

    return run


def with_namespace(plane: ControlPlane, name: str) -> None:
    """Files that share a control plane may want the same one."""
    plane.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with two nodes and the chart, as the lab installs it."""
    with ControlPlane(tmp_path_factory.mktemp("chart-plane"), progress=Console()) as plane:
        install_chart(plane, CHART)
        nodes.create(plane, [nodes.NodeSpec(name=name, labels={}, boot_id=nodes.new_boot_id()) for name in NODES])
        policies_in_force(plane)
        yield plane


PROBE = """
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: probe}
spec:
  matchConstraints:
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps], resourceNames: [probe]}]
  validations: [{expression: "false", message: seen}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: probe}
spec: {policyName: probe, validationActions: [Deny]}
"""


def policies_in_force(plane: ControlPlane) -> None:
    """Until the API server asks policies made after the chart's, and so the chart's: a moment after they are made."""
    plane.kubectl("apply", "-f", "-", stdin=PROBE)
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe"}}

    def asked() -> bool:
        answer = plane.http.post("/api/v1/namespaces/default/configmaps", params={"dryRun": "All"}, json=body)
        return answer.status_code == 422 and "seen" in answer.json()["message"]

    eventually("the API server asks a policy", asked)
    plane.kubectl("delete", "-f", "-", stdin=PROBE)


PATIENCE_S = 300.0
"""For commands that wait until something is gone; a busy machine takes its time."""
GUARDS = """
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
  - name: PodSecurity
    configuration:
      apiVersion: pod-security.admission.config.k8s.io/v1
      kind: PodSecurityConfiguration
      defaults: {enforce: restricted, enforce-version: latest}
      exemptions: {namespaces: [kube-system]}
  - name: ResourceQuota
    configuration:
      apiVersion: apiserver.config.k8s.io/v1
      kind: ResourceQuotaConfiguration
      limitedResources:
        - resource: pods
          matchScopes:
            - {scopeName: PriorityClass, operator: In, values: [system-node-critical, system-cluster-critical]}
"""


class GuardedPlane(ControlPlane):
    """Enforces `restricted` wherever a namespace says nothing else, as Talos and hardened clusters do, and holds the critical
    priority classes to namespaces with a quota for them, as GKE does."""

    def _arguments(self, component: Component, port: int) -> Sequence[str]:
        given = super()._arguments(component, port)
        if component is not Component.API_SERVER:
            return given
        file = self.directory / "guards.yaml"
        file.write_text(GUARDS)
        return [*given, f"--admission-control-config-file={file}"]

    def shell(self, commands: str) -> subprocess.CompletedProcess[str]:
        """What a person types, in the repository's root, with kubectl and helm on the path and nothing of the user's."""
        programs = ":".join(sorted({str(self.tools[name].parent) for name in ("kubectl", "helm")}))
        homes = {f"HELM_{kind}_HOME": str(self.directory / "helm" / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=CHART.parents[1],
            env={
                "PATH": f"{programs}:{os.environ['PATH']}",
                "HOME": str(self.directory),
                "KUBECONFIG": str(self.kubeconfig),
                **homes,
            },
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedPlane]:
    with GuardedPlane(tmp_path_factory.mktemp("guarded-plane"), progress=Console()) as plane:
        runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"}
        plane.kubectl("create", "-f", "-", stdin=json.dumps(runtime))
        yield plane
