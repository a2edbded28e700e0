"""The real Helm, on a small chart of the test's own: what `install_chart` itself promises."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.errors import LabError
from splitwatt_lab.install import install_chart, uninstall_chart

TEMPLATE = """
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-seen}
data: {values: {{ .Values | toJson | quote }}}
{{ if .Values.bad }}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: "Not A Name"}
{{ end }}
"""


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: scratch\nversion: 0.1.0\n")
    (tmp_path / "values.yaml").write_text("operator: {replicas: 2, level: info}\nagent: {nodeSelector: {gpu: 'true'}}\n")
    (tmp_path / "templates" / "seen.yaml").write_text(TEMPLATE)
    return tmp_path


@pytest.fixture
def namespace() -> str:
    return f"test-{uuid.uuid4().hex[:10]}"


def seen(plane: ControlPlane, namespace: str) -> dict[str, dict[str, object]]:
    data = json.loads(plane.kubectl("get", "configmap", "lab-seen", "-n", namespace, "-o", "json").stdout)["data"]
    values: dict[str, dict[str, object]] = json.loads(data["values"])
    return values


def test_the_chart_is_installed_without_pods_upgraded_and_removed(
    control_plane: ControlPlane, chart: Path, namespace: str
) -> None:
    install_chart(control_plane, chart, release="lab", namespace=namespace)
    values = seen(control_plane, namespace)
    assert values["operator"] == {"replicas": 0, "level": "info"}, "no operator pod, the chart's other values as they are"
    assert values["agent"]["nodeSelector"] == {"gpu": "true", "splitwatt.io/no-such-node": "true"}

    install_chart(control_plane, chart, release="lab", namespace=namespace, values={"operator": {"level": "debug"}})
    assert seen(control_plane, namespace)["operator"] == {"replicas": 0, "level": "debug"}

    uninstall_chart(control_plane, release="lab", namespace=namespace)
    assert not control_plane.kubectl("get", "configmap", "lab-seen", "-n", namespace, "--ignore-not-found").stdout


def test_what_the_api_server_refuses_is_one_sentence(control_plane: ControlPlane, chart: Path, namespace: str) -> None:
    with pytest.raises(LabError, match=r"`helm upgrade` failed: .*Not A Name") as refused:
        install_chart(control_plane, chart, release="lab", namespace=namespace, values={"bad": True})
    assert "\n" not in str(refused.value)
    with pytest.raises(LabError, match="`helm upgrade` failed: "):
        install_chart(control_plane, chart / "nowhere", release="other", namespace=namespace)
