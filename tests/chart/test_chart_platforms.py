"""Each platform's values: held to a golden, strict about nothing unknown, and taken by a real API server.

`SPLITWATT_WRITE_GOLDENS=1 pytest tests/chart/test_chart_platforms.py` writes the goldens anew; read what changed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.install import NAMESPACE
from support.some import some

from .conftest import CHART, PLATFORMS, REGISTRY, Helm, Render

GOLDENS = Path(__file__).parent / "goldens"
INSTALL_PAGE = CHART.parents[1] / "docs" / "install.md"
ALIKE = {
    "ConfigMap", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding", "NetworkPolicy", "Service", "ServiceAccount",
    "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
}  # fmt: skip
"""Kinds in which no platform differs from another."""
EACH = pytest.mark.parametrize("platform", PLATFORMS, ids=lambda path: path.stem)

SCC: Mapping[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "securitycontextconstraints.security.openshift.io"},
    "spec": {
        "group": "security.openshift.io",
        "scope": "Cluster",
        "names": {"kind": "SecurityContextConstraints", "plural": "securitycontextconstraints", "shortNames": ["scc"]},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        # What OpenShift's own definition requires.
                        "required": [
                            "allowHostDirVolumePlugin", "allowHostIPC", "allowHostNetwork", "allowHostPID", "allowHostPorts",
                            "allowPrivilegedContainer", "allowedCapabilities", "defaultAddCapabilities", "priority",
                            "readOnlyRootFilesystem", "requiredDropCapabilities", "volumes",
                        ],
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}  # fmt: skip
"""OpenShift's kind, as far as the API server of a test needs it."""


def rendered(render: Render, platform: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return render(f"--values={platform}", f"--set=image.registry={REGISTRY}")


def test_every_platform_people_asked_for_is_there_and_on_the_page() -> None:
    names = {path.stem for path in PLATFORMS}
    assert names >= {"kubeadm", "gke", "eks", "aks", "openshift", "talos", "k3s", "rke2"}
    page = INSTALL_PAGE.read_text()
    (table,) = re.findall(r"^\| platform \|.*?\n\n", page, re.DOTALL | re.MULTILINE)
    assert {f"{name}.yaml" for name in names} == set(re.findall(r"`([a-z0-9-]+\.yaml)`", table))
    for platform in PLATFORMS:
        (row,) = [line for line in table.splitlines() if f"`{platform.name}`" in line]
        for key in some(leaves(yaml.safe_load(platform.read_text()))):
            assert key in row, (platform.name, key)


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The values that a file sets, as --set names them; of a mapping with free keys, the keys."""
    for key, value in values.items():
        if prefix.endswith("podAnnotations."):
            yield key
        elif isinstance(value, Mapping) and key != "seLinuxOptions":
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@EACH
def test_what_a_platform_gets_is_what_was_read_and_agreed_to(render: Render, platform: Path) -> None:
    found = rendered(render, platform)
    own = [found[key] for key in sorted(found) if key[0] not in ALIKE]
    text = yaml.safe_dump_all(own, sort_keys=True, width=120)
    golden = GOLDENS / platform.name
    if os.environ.get("SPLITWATT_WRITE_GOLDENS"):
        GOLDENS.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


def test_no_golden_stands_for_nothing() -> None:
    assert {path.name for path in GOLDENS.iterdir()} == {path.name for path in PLATFORMS}


def test_in_the_other_kinds_no_platform_differs(render: Render) -> None:
    alike = [{key: doc for key, doc in rendered(render, path).items() if key[0] in ALIKE} for path in some(PLATFORMS)]
    assert all(one == alike[0] for one in alike) and {key[0] for key in alike[0]} == ALIKE


@EACH
def test_a_platforms_values_pass_the_strict_lint(helm: Helm, platform: Path) -> None:
    result = helm("lint", "--strict", CHART, f"--values={platform}", f"--set=image.registry={REGISTRY}")
    assert result.returncode == 0, result.stdout + result.stderr


# ----------------------------------------------------------------------------------------------------- a real API server


@pytest.fixture(scope="module")
def cluster(installed: ControlPlane) -> ControlPlane:
    installed.kubectl("apply", "-f", "-", stdin=json.dumps(SCC))
    installed.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{SCC['metadata']['name']}")
    runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"}
    installed.kubectl("apply", "-f", "-", stdin=json.dumps(runtime))
    return installed


@EACH
def test_the_api_server_takes_every_object_as_it_is_written(cluster: ControlPlane, render: Render, platform: Path) -> None:
    documents = list(rendered(render, platform).values())
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    said = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
    assert said.stdout.count("(server dry run)") == len(documents)
    for document in documents:
        if document["kind"] in ("DaemonSet", "Deployment"):
            metadata = {**document["spec"]["template"]["metadata"], "name": "tried", "namespace": NAMESPACE}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": document["spec"]["template"]["spec"]}
            cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=json.dumps(pod))
