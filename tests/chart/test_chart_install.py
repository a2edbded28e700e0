"""The chart in a real cluster: what each service account may do, and what it may not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from splitwatt_core.gpus import profiles
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.errors import LabError
from splitwatt_lab.install import NAMESPACE, RELEASE, install_chart, uninstall_chart
from splitwatt_lab.ports import free_port
from splitwatt_lab.processes import ProcessGroup
from splitwatt_operator.cluster.watch import WATCHED, Watched
from support.some import some
from support.waiting import eventually

from .conftest import CHART, with_namespace

OPERATOR = f"system:serviceaccount:{NAMESPACE}:splitwatt-operator"
AGENT = f"system:serviceaccount:{NAMESPACE}:splitwatt-agent"
EVERYWHERE = "--all-namespaces"


def may(plane: ControlPlane, who: str, verb: str, resource: str, *more: str) -> bool:
    answer = plane.kubectl("auth", "can-i", verb, resource, f"--as={who}", *more, check=False)
    assert answer.stdout.strip() in ("yes", "no"), answer.stderr
    return answer.stdout.strip() == "yes"


@pytest.mark.parametrize("watched", WATCHED, ids=lambda w: w.resource.plural)
def test_the_operator_may_watch_what_it_watches(installed: ControlPlane, watched: Watched) -> None:
    resource = watched.resource
    group = resource.api_version.rpartition("/")[0]
    name = f"{resource.plural}.{group}" if group else resource.plural
    for verb in ("list", "watch"):
        assert may(installed, OPERATOR, verb, name, EVERYWHERE)


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("create", "nodepowers"),
        ("patch", "nodepowers"),
        ("delete", "nodepowers"),
        ("list", "namespaces"),
        ("patch", "powerbudgets/status"),
        ("patch", "inferenceclusters/status"),
        ("create", "rolescales"),
        ("patch", "rolescales"),
        ("patch", "rolescales/status"),
        ("update", "inferenceclusters/finalizers"),
        ("patch", "pods"),
        ("create", "powerprofiles"),
        *((verb, kind) for kind in ("deployments", "services", "poddisruptionbudgets") for verb in ("create", "patch", "delete")),
        ("create", "events.events.k8s.io"),
    ],
)
def test_the_operator_may(installed: ControlPlane, verb: str, resource: str) -> None:
    name, _, sub = resource.partition("/")
    assert may(installed, OPERATOR, verb, name, EVERYWHERE, *([f"--subresource={sub}"] if sub else []))


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("patch", "nodepowers/status"),
        ("patch", "powerbudgets"),
        ("patch", "inferenceclusters"),
        ("delete", "rolescales"),
        ("delete", "powerbudgets"),
        ("delete", "pods"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("patch", "nodes"),
        ("get", "secrets"),
        ("get", "namespaces"),
        ("list", "customresourcedefinitions"),
        ("patch", "leases"),
        ("patch", "powerprofiles"),
        ("delete", "powerprofiles"),
        ("create", "clusterrolebindings"),
    ],
)
def test_the_operator_may_not(installed: ControlPlane, verb: str, resource: str) -> None:
    name, _, sub = resource.partition("/")
    assert not may(installed, OPERATOR, verb, name, EVERYWHERE, *([f"--subresource={sub}"] if sub else []))


def test_of_leases_the_operator_writes_its_own_alone(installed: ControlPlane) -> None:
    here = f"--namespace={NAMESPACE}"
    for verb in ("get", "patch"):
        assert may(installed, OPERATOR, verb, "leases/splitwatt-operator", here)
        assert not may(installed, OPERATOR, verb, "leases/another", here)
    assert may(installed, OPERATOR, "create", "leases", here)
    assert not may(installed, OPERATOR, "create", "leases", "--namespace=kube-node-lease")


def test_of_profiles_the_operator_writes_the_built_in_ones_alone(installed: ControlPlane) -> None:
    for verb in ("get", "patch"):
        assert all(may(installed, OPERATOR, verb, f"powerprofiles/{p.name.lower()}") for p in some(profiles.builtin()))
    assert not may(installed, OPERATOR, "patch", "powerprofiles/somebodys")


def test_the_agent_reads_grants_and_writes_their_status_only(installed: ControlPlane) -> None:
    allowed = {("get", ""), ("list", ""), ("watch", ""), ("patch", "status")}
    for verb in ("get", "list", "watch", "create", "patch", "update", "delete"):
        for sub in ("", "status"):
            options = [EVERYWHERE, *([f"--subresource={sub}"] if sub else [])]
            assert may(installed, AGENT, verb, "nodepowers", *options) == ((verb, sub) in allowed), (verb, sub)
    for resource in ("pods", "powerbudgets", "leases", "secrets", "events"):
        assert not may(installed, AGENT, "get", resource, EVERYWHERE)
    for verb in ("get", "list", "watch", "create", "patch", "update", "delete"):
        assert may(installed, AGENT, verb, "nodes", EVERYWHERE) == (verb in ("get", "list", "watch")), verb


# ------------------------------------------------------------------------------------------------------ life of a release


def test_an_upgrade_changes_what_was_asked_and_keeps_the_rest(installed: ControlPlane) -> None:
    install_chart(installed, CHART, values={"operator": {"prometheusUrl": "http://elsewhere:9090"}})
    text = installed.kubectl("get", "deployment", "splitwatt-operator", "-n", NAMESPACE, "-o", "yaml").stdout
    assert "--prometheus-url=http://elsewhere:9090" in text


def test_the_operator_as_the_chart_starts_it_publishes_profiles_and_leaves_edits(installed: ControlPlane, tmp_path: Path) -> None:
    """With the chart's own arguments, under the chart's own account."""
    deployment = json.loads(installed.kubectl("get", "deployment", "splitwatt-operator", "-n", NAMESPACE, "-o", "json").stdout)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    here = {
        "--listen": f"127.0.0.1:{free_port()}",
        "--kubeconfig": str(installed.token_kubeconfig(NAMESPACE, "splitwatt-operator")),
    }
    given = [argument for argument in container["args"] if argument.partition("=")[0] not in here]
    command = [sys.executable, "-m", "splitwatt_operator", *given, *(f"{key}={value}" for key, value in here.items())]
    names = sorted(f"powerprofile.splitwatt.io/{p.name.lower()}" for p in some(profiles.builtin()))

    def there() -> bool:
        return sorted(installed.kubectl("get", "powerprofiles", "-o", "name").stdout.split()) == names

    with ProcessGroup(tmp_path) as group:
        first = group.start("operator", command)
        eventually("every profile is there", there)
        first.kill()
        installed.kubectl("patch", "powerprofile", "h100-sxm", "--type=merge", "-p", '{"spec":{"idleWatts":91}}')
        installed.kubectl("delete", "powerprofile", "b200")
        second = group.start("operator-again", command)
        eventually("the deleted one is back", there)
        eventually("the edit was seen", lambda: "h100-sxm stays as kubectl-patch left it" in second.log.read_text())
    assert installed.kubectl("get", "powerprofile", "h100-sxm", "-o", "jsonpath={.spec.idleWatts}").stdout == "91"


def test_a_wrong_value_is_refused_before_anything_changes(installed: ControlPlane) -> None:
    with pytest.raises(LabError, match="got string, want integer"):
        install_chart(installed, CHART, values={"operator": {"replicas": "one"}})


def test_pods_are_taken_by_the_api_server(installed: ControlPlane) -> None:
    """Both pod templates pass the API server's own checks, which template rendering cannot show."""
    for kind, name in (("deployment", "splitwatt-operator"), ("daemonset", "splitwatt-agent")):
        workload = json.loads(installed.kubectl("get", kind, name, "-n", NAMESPACE, "-o", "json").stdout)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried", "namespace": NAMESPACE}}
        pod["spec"] = workload["spec"]["template"]["spec"]
        installed.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))


def test_budgets_and_grants_outlive_the_release(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Uninstalling must not release a single charge: the CustomResourceDefinitions stay, and so do the objects."""
    with ControlPlane(tmp_path_factory.mktemp("uninstall-plane")) as plane:
        install_chart(plane, CHART)
        plane.kubectl("apply", "-f", CHART.parents[1] / "examples" / "budgets.yaml")
        uninstall_chart(plane)
        assert len(plane.kubectl("get", "powerbudgets", "-o", "name").stdout.split()) == 3
        install_chart(plane, CHART, release=RELEASE)
        assert len(plane.kubectl("get", "powerbudgets", "-o", "name").stdout.split()) == 3


def test_the_examples_are_taken_as_they_are(installed: ControlPlane) -> None:
    """With strict field validation, as kubectl does it; namespaces first, for a dry run makes none."""
    for name in ("serving", "batch"):
        with_namespace(installed, name)
    examples = CHART.parents[1] / "examples"
    installed.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", examples)
    result: subprocess.CompletedProcess[str] = installed.kubectl("explain", "powerbudget.spec.reserveWatts")
    assert "Watts kept back for surprises" in result.stdout
