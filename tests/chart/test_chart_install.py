"""The chart in a real cluster: what each service account may do, and what it may not."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Iterator

import httpx
import pytest
import yaml
from splitwatt_core.gpus import profiles
from splitwatt_core.protocol.contract import Status as NodeStatus
from splitwatt_core.protocol.contract import status_to_wire
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.errors import LabError
from splitwatt_lab.install import NAMESPACE, RELEASE, install_chart, uninstall_chart
from splitwatt_operator.cluster.watch import WATCHED, Watched

from .conftest import CHART, NODES

OPERATOR = f"system:serviceaccount:{NAMESPACE}:splitwatt-operator"
AGENT = f"system:serviceaccount:{NAMESPACE}:splitwatt-agent"
EVERYWHERE = "--all-namespaces"


def may(plane: ControlPlane, who: str, verb: str, resource: str, *more: str) -> bool:
    answer = plane.kubectl("auth", "can-i", verb, resource, f"--as={who}", *more, check=False)
    assert answer.stdout.strip() in ("yes", "no"), answer.stderr
    return answer.stdout.strip() == "yes"


def test_profiles_are_there(installed: ControlPlane) -> None:
    found = installed.kubectl("get", "powerprofiles", "-o", "name").stdout.split()
    assert sorted(found) == sorted(f"powerprofile.splitwatt.io/{p.name.lower()}" for p in profiles.builtin())


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
        ("patch", "powerbudgets/status"),
        ("patch", "inferenceclusters/status"),
        ("update", "inferenceclusters/finalizers"),
        ("patch", "pods"),
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
        ("delete", "powerbudgets"),
        ("delete", "pods"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("patch", "nodes"),
        ("get", "secrets"),
        ("list", "namespaces"),
        ("list", "customresourcedefinitions"),
        ("patch", "leases"),
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


def test_the_agent_reads_grants_and_writes_their_status_only(installed: ControlPlane) -> None:
    allowed = {("get", ""), ("list", ""), ("watch", ""), ("patch", "status"), ("update", "status")}
    for verb in ("get", "list", "watch", "create", "patch", "update", "delete"):
        for sub in ("", "status"):
            options = [EVERYWHERE, *([f"--subresource={sub}"] if sub else [])]
            assert may(installed, AGENT, verb, "nodepowers", *options) == ((verb, sub) in allowed), (verb, sub)
    for resource in ("pods", "powerbudgets", "leases", "secrets", "events"):
        assert not may(installed, AGENT, "get", resource, EVERYWHERE)
    for verb in ("get", "list", "watch", "create", "patch", "update", "delete"):
        assert may(installed, AGENT, verb, "nodes", EVERYWHERE) == (verb in ("get", "list", "watch")), verb


# --------------------------------------------------------------------------------------------------- the agent's own node


@pytest.fixture
def node_powers(installed: ControlPlane) -> Iterator[ControlPlane]:
    for name in NODES:
        body = {"apiVersion": "splitwatt.io/v1alpha1", "kind": "NodePower", "metadata": {"name": name}}
        installed.kubectl("create", "-f", "-", stdin=json.dumps(body))
    yield installed
    installed.kubectl("delete", "nodepowers", *NODES)


def write_status(plane: ControlPlane, *, token_of: str | None, name: str) -> httpx.Response:
    """Apply a status as an agent does, under a token of the agent's account."""
    config = yaml.safe_load(plane.token_kubeconfig(NAMESPACE, "splitwatt-agent", token_of).read_text())
    token = config["users"][0]["user"]["token"]
    body = {
        "apiVersion": "splitwatt.io/v1alpha1",
        "kind": "NodePower",
        "metadata": {"name": name},
        "status": status_to_wire(NodeStatus(observed_term=1)),
    }
    url = f"{plane.url}/apis/splitwatt.io/v1alpha1/nodepowers/{name}/status"
    trust = ssl.create_default_context(cafile=config["clusters"][0]["cluster"]["certificate-authority"])
    with httpx.Client(verify=trust) as http:
        return http.patch(
            url,
            params={"fieldManager": "splitwatt-agent", "force": "true"},
            content=json.dumps(body),
            headers={"Content-Type": "application/apply-patch+yaml", "Authorization": f"Bearer {token}"},
        )


def test_an_agent_writes_its_own_node(node_powers: ControlPlane) -> None:
    answer = write_status(node_powers, token_of="n1", name="n1")
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"]["observedTerm"] == 1


def test_an_agent_may_not_speak_for_its_neighbour(node_powers: ControlPlane) -> None:
    answer = write_status(node_powers, token_of="n1", name="n2")
    assert answer.status_code == 403, answer.text
    assert "the agent of node n1 may write only the NodePower of that name, not n2" in answer.json()["message"]


def test_a_token_of_no_node_speaks_for_none(node_powers: ControlPlane) -> None:
    answer = write_status(node_powers, token_of=None, name="n1")
    assert answer.status_code == 403, answer.text
    assert "the agent's token names no node" in answer.json()["message"]


def test_others_are_not_bound_by_the_agents_policy(node_powers: ControlPlane) -> None:
    node_powers.kubectl("label", "nodepower", "n1", "note=by-the-administrator")


# ------------------------------------------------------------------------------------------------------ life of a release


def test_an_upgrade_changes_what_was_asked_and_keeps_the_rest(installed: ControlPlane) -> None:
    install_chart(installed, CHART, values={"operator": {"prometheusUrl": "http://elsewhere:9090"}})
    text = installed.kubectl("get", "deployment", "splitwatt-operator", "-n", NAMESPACE, "-o", "yaml").stdout
    assert "--prometheus-url=http://elsewhere:9090" in text
    assert len(installed.kubectl("get", "powerprofiles", "-o", "name").stdout.split()) == len(profiles.builtin())


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
        installed.kubectl("create", "namespace", name)
    examples = CHART.parents[1] / "examples"
    installed.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", examples)
    result: subprocess.CompletedProcess[str] = installed.kubectl("explain", "powerbudget.spec.reserveWatts")
    assert "Watts kept back for surprises" in result.stdout
