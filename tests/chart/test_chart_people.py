"""What people may do: whoever may edit a namespace has its clusters, and budgets are for those who were given them. Asked of a
real API server, whose controller manager joins the chart's roles to Kubernetes' own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from splitwatt_lab.controlplane import ControlPlane
from support.waiting import eventually

from .conftest import with_namespace

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rights.md"
OURS = "splitwatt.io"
TEAM = "team-chat"


@pytest.fixture(scope="module")
def people(installed: ControlPlane) -> Iterator[ControlPlane]:
    """Vera may view, Ed may edit the team's namespace; Paula owns all power; what the page gives, as it gives it."""
    with_namespace(installed, TEAM)
    for user, role in (("vera", "view"), ("ed", "edit")):
        installed.kubectl("create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", f"--namespace={TEAM}")
    installed.kubectl("create", "clusterrolebinding", "paula", "--clusterrole=splitwatt-power-admin", "--user=paula")
    installed.kubectl("create", "clusterrolebinding", "vera-power", "--clusterrole=splitwatt-power-view", "--user=vera")
    for document in page_objects():
        installed.kubectl("apply", "-f", "-", stdin=json.dumps(document))
    eventually("aggregated", lambda: may(installed, "ed", "create", "inferenceclusters", namespace=TEAM))
    yield installed


def page_objects() -> list[dict[str, Any]]:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [document for block in blocks for document in yaml.safe_load_all(block)]


def may(
    plane: ControlPlane, user: str, verb: str, resource: str, *, namespace: str = "", name: str = "", groups: str = ""
) -> bool:
    resource, _, subresource = resource.partition("/")
    attributes = {
        "group": OURS, "resource": resource, "subresource": subresource, "verb": verb, "namespace": namespace, "name": name,
    }  # fmt: skip
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": [groups] if groups else [], "resourceAttributes": attributes},
    }
    answer = plane.http.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", json=body).raise_for_status().json()
    return bool(answer["status"]["allowed"])


def test_an_editor_of_a_namespace_has_its_clusters_and_no_others(people: ControlPlane) -> None:
    for verb in ("get", "list", "watch", "create", "update", "patch", "delete"):
        assert may(people, "ed", verb, "inferenceclusters", namespace=TEAM), verb
        assert not may(people, "ed", verb, "inferenceclusters", namespace="default"), verb
    assert may(people, "ed", "patch", "inferenceclusters/scale", namespace=TEAM)
    assert may(people, "ed", "patch", "rolescales/scale", namespace=TEAM)
    assert not may(people, "ed", "patch", "inferenceclusters/status", namespace=TEAM)
    assert not may(people, "ed", "patch", "powerbudgets")


def test_a_viewer_reads_and_changes_nothing(people: ControlPlane) -> None:
    assert may(people, "vera", "list", "inferenceclusters", namespace=TEAM)
    assert may(people, "vera", "list", "powerbudgets")
    for verb in ("create", "update", "patch", "delete"):
        assert not may(people, "vera", verb, "inferenceclusters", namespace=TEAM)
        assert not may(people, "vera", verb, "powerbudgets")
        assert not may(people, "vera", verb, "nodepowers")


def test_power_is_changed_by_those_who_own_it(people: ControlPlane) -> None:
    assert may(people, "paula", "patch", "powerbudgets", name="row-a")
    assert may(people, "paula", "patch", "nodepowers", name="n1"), "the annotation that releases a node"
    assert not may(people, "paula", "patch", "inferenceclusters", namespace=TEAM)
    assert not may(people, "paula", "create", "nodepowers")


def test_the_owner_of_one_rack_changes_that_rack_alone(people: ControlPlane) -> None:
    owners = "rack-a1-owners"
    assert may(people, "rita", "patch", "powerbudgets", name="rack-a1", groups=owners)
    assert may(people, "rita", "list", "powerbudgets", groups=owners)
    assert not may(people, "rita", "patch", "powerbudgets", name="row-a", groups=owners)
    assert not may(people, "rita", "delete", "powerbudgets", name="rack-a1", groups=owners)
    assert not may(people, "rita", "create", "powerbudgets", groups=owners)


def test_the_page_holds_a_rack_below_its_row(people: ControlPlane) -> None:
    """The policy on the page: by real requests under another's name."""
    spec = {
        "limitWatts": 26000,
        "nodeSelector": {"matchLabels": {"r": "a1"}},
        "unmanagedWattsPerNode": 0,
        "nonGpuWattsPerNode": 1,
    }
    body = {"apiVersion": "splitwatt.io/v1alpha1", "kind": "PowerBudget", "metadata": {"name": "rack-a1"}, "spec": spec}
    people.kubectl("apply", "-f", "-", stdin=json.dumps(body))
    try:
        headers = {
            "Impersonate-User": "rita",
            "Impersonate-Group": "rack-a1-owners",
            "Content-Type": "application/merge-patch+json",
        }

        def patch(change: dict[str, Any]) -> Any:
            path = "/apis/splitwatt.io/v1alpha1/powerbudgets/rack-a1"
            return people.http.patch(path, params={"dryRun": "All"}, headers=headers, content=json.dumps({"spec": change}))

        def refuses() -> bool:
            return bool(patch({"limitWatts": 27000}).status_code == 422)

        eventually("the policy of the page is in force", refuses)
        assert "may lower limitWatts, not raise it" in patch({"limitWatts": 27000}).json()["message"]
        assert patch({"limitWatts": 25000}).status_code == 200
        assert patch({"limitWatts": 25000, "fixedWatts": 0}).status_code == 200
    finally:
        people.kubectl("delete", "powerbudget", "rack-a1")
