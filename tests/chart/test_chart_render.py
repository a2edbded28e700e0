"""What the chart renders, without a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import splitwatt_agent.__main__ as agent_main
import yaml
from splitwatt_operator import options
from splitwatt_operator.telemetry.endpoint import EndPoint
from support.some import some

from .conftest import CHART, Helm, Render

MONITORING = "--api-versions=monitoring.coreos.com/v1"


def container(workload: Mapping[str, Any]) -> dict[str, Any]:
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def test_the_chart_passes_helms_strict_lint(helm: Helm) -> None:
    result = helm("lint", "--strict", CHART)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_operators_arguments_are_those_it_parses(render: Render) -> None:
    values = {"operator": {"prometheusUrl": "https://p:1", "logLevel": "debug", "metricsPort": 9999}}
    given = options.parse(container(render(values=values)["Deployment", "splitwatt-operator"])["args"])
    assert given.end_point.url == "https://p:1"
    assert str(given.listen) == "0.0.0.0:9999"
    assert given.namespace == "splitwatt-system"
    assert given.log_level == "debug"
    assert given.kubeconfig is None


@pytest.mark.parametrize(
    ("operator", "lease_s"), [({}, 15), ({"replicas": 2}, 3), ({"replicas": 2, "leaseSeconds": 10}, 10), ({"leaseSeconds": 2}, 2)]
)
def test_the_lease_is_short_beside_a_standby(render: Render, operator: dict[str, Any], lease_s: int) -> None:
    made = render(values={"operator": operator})["Deployment", "splitwatt-operator"]
    given = options.parse(container(made)["args"])
    assert given.lease_s == lease_s
    assert given.state_dir is not None
    mounts = [mount["mountPath"] for mount in container(made)["volumeMounts"]]
    assert any(given.state_dir.is_relative_to(mount) for mount in mounts), "it outlives the container"


def test_everything_about_prometheus_reaches_the_operator(render: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EndPoint, "tls", lambda self: None)  # its files are in the pod alone
    monkeypatch.setattr(EndPoint, "request_headers", lambda self: {})
    asked = {
        "method": "GET",
        "queryArgs": {"latency_offset": "1s"},
        "matchers": ['cluster="a"', "region!~'x|y'"],
        "headers": {"X-Scope-OrgID": "team a"},
        "headerFiles": {"X-Key": "tenant"},
        "secretName": "prometheus-client",
        "configMapName": "site-ca",
        "basicAuth": {"user": "u", "passwordFile": "password"},
        "caFile": "ca.crt",
        "certFile": "tls.crt",
        "keyFile": "/var/run/tls.key",
    }
    values = {"operator": {"prometheusUrl": "https://p:1", "prometheus": asked, "agentSilenceSeconds": 65}}
    made = render(values=values)["Deployment", "splitwatt-operator"]
    given = options.parse(container(made)["args"])
    folder = Path("/etc/splitwatt/prometheus")
    assert given.agent_silent_s == 65.0
    assert given.end_point == EndPoint(
        url="https://p:1",
        method="GET",
        arguments=(("latency_offset", "1s"),),
        matchers=('cluster="a"', "region!~'x|y'"),
        headers=(("X-Scope-OrgID", "team a"),),
        header_files=(("X-Key", folder / "tenant"),),
        user="u",
        password_file=folder / "password",
        ca_file=folder / "ca.crt",
        certificate_file=folder / "tls.crt",
        key_file=Path("/var/run/tls.key"),
    )
    (volume,) = [v for v in made["spec"]["template"]["spec"]["volumes"] if v["name"] == "prometheus"]
    assert volume["projected"]["sources"] == [{"secret": {"name": "prometheus-client"}}, {"configMap": {"name": "site-ca"}}]
    assert {m["mountPath"] for m in container(made)["volumeMounts"]} == {"/tmp", str(folder)}
    token = {"operator": {"prometheus": {"bearerTokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token"}}}
    plain = render(values=token)["Deployment", "splitwatt-operator"]
    assert str(options.parse(container(plain)["args"]).end_point.token_file).endswith("serviceaccount/token")
    assert [v["name"] for v in plain["spec"]["template"]["spec"]["volumes"]] == ["tmp"]


def annotated(found: Mapping[tuple[str, str], dict[str, Any]]) -> set[str]:
    services = {name: doc for (kind, name), doc in found.items() if kind == "Service"}
    return {name for name, doc in services.items() if "prometheus.io/scrape" in doc["metadata"].get("annotations", {})}


def test_each_pod_is_scraped_one_way(render: Render) -> None:
    """By a PodMonitor or by annotations that a Prometheus follows: two series of one agent are an error."""
    both = {"splitwatt-agent", "splitwatt-operator"}
    plain, monitored = render(), render(MONITORING)
    off = render(MONITORING, values={"metrics": {"podMonitor": {"enabled": False}}})
    assert annotated(plain) == annotated(off) == both and annotated(monitored) == set()
    for component, kind in (("agent", "DaemonSet"), ("operator", "Deployment")):
        name = f"splitwatt-{component}"
        assert ("PodMonitor", name) not in plain and ("PodMonitor", name) not in off
        pod = monitored[kind, name]["spec"]["template"]
        monitor = monitored["PodMonitor", name]["spec"]
        assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        assert monitor["podMetricsEndpoints"][0]["port"] in [port["name"] for port in container(monitored[kind, name])["ports"]]


def test_agents_are_scraped_every_second_where_the_prometheus_operator_runs(render: Render) -> None:
    found = render(MONITORING, values={"metrics": {"podMonitor": {"labels": {"release": "p"}}}})
    monitor, agent = found["PodMonitor", "splitwatt-agent"], found["DaemonSet", "splitwatt-agent"]
    assert monitor["metadata"]["labels"]["release"] == "p"
    (scraped,) = monitor["spec"]["podMetricsEndpoints"]
    assert (scraped["interval"], scraped["port"]) == ("1s", container(agent)["ports"][0]["name"])
    labels = agent["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_agents_arguments_are_those_it_parses(render: Render) -> None:
    made = container(render()["DaemonSet", "splitwatt-agent"])
    arguments = [argument.replace("$(NODE_NAME)", "n1") for argument in made["args"]]
    given = agent_main.parse(arguments)
    assert given.node == "n1"
    assert (given.listen.host, given.listen.port) == ("0.0.0.0", made["ports"][0]["containerPort"])
    assert str(given.pod_resources) == "/var/lib/kubelet/pod-resources/kubelet.sock"
    assert str(given.state_dir) == "/var/lib/splitwatt"
    mounts = {mount["mountPath"] for mount in made["volumeMounts"]}
    assert mounts == {"/var/lib/splitwatt", "/var/lib/kubelet/pod-resources"}


def test_the_agent_keeps_one_capability_and_nothing_else(render: Render) -> None:
    pod = render()["DaemonSet", "splitwatt-agent"]["spec"]["template"]["spec"]
    context = pod["containers"][0]["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN"]}
    assert context["privileged"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert not pod.keys() & {"hostPID", "hostNetwork", "hostIPC"}


def test_an_agent_that_waits_for_a_driver_is_not_killed_and_one_may_only_observe(render: Render) -> None:
    def agent(**values: Any) -> dict[str, Any]:
        container: dict[str, Any] = render(values={"agent": values})["DaemonSet", "splitwatt-agent"]["spec"]["template"]["spec"][
            "containers"
        ][0]
        return container

    plain = agent()
    assert plain["livenessProbe"]["httpGet"]["path"] == "/healthz", "which says 200 while it waits"
    assert plain["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert "--observe" not in plain["args"]
    assert "--observe" in agent(observe=True)["args"]


def test_agents_listen_for_their_operator_alone(render: Render) -> None:
    plain, found = render(), render(values={"agent": {"stream": {"enabled": True, "port": 9499}}})
    assert not any("stream" in argument for argument in container(plain["DaemonSet", "splitwatt-agent"])["args"])
    made = container(found["DaemonSet", "splitwatt-agent"])
    pod_ip = next(row for row in made["env"] if row["name"] == "POD_IP")
    assert pod_ip["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
    arguments = [argument.replace("$(NODE_NAME)", "n1").replace("$(POD_IP)", "fd00::5") for argument in made["args"]]
    own = agent_main.parse(arguments).stream
    assert own is not None
    account = found["ServiceAccount", "splitwatt-operator"]["metadata"]
    assert own.user == f"system:serviceaccount:{account['namespace']}:{account['name']}"
    assert (own.listen.host, own.listen.port, own.advertise) == ("0.0.0.0", 9499, "fd00::5")
    assert {"name": "stream", "containerPort": 9499, "protocol": "TCP"} in made["ports"]

    operator = container(found["Deployment", "splitwatt-operator"])
    assert options.parse(operator["args"]).stream_account == account["name"]
    tokens = [rule for rule in found["Role", "splitwatt-operator"]["rules"] if rule["resources"] == ["serviceaccounts/token"]]
    assert [(rule["resourceNames"], rule["verbs"]) for rule in tokens] == [([account["name"]], ["create"])]
    _, own_rule = found["NetworkPolicy", "splitwatt-agent"]["spec"]["ingress"]
    assert own_rule["ports"] == [{"protocol": "TCP", "port": 9499}]
    (sender,) = own_rule["from"]
    labels = found["Deployment", "splitwatt-operator"]["spec"]["template"]["metadata"]["labels"]
    assert sender["podSelector"]["matchLabels"].items() <= labels.items()


def test_the_operator_runs_as_nobody(render: Render) -> None:
    pod = render()["Deployment", "splitwatt-operator"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_no_rule_of_rbac_has_a_star_or_reads_secrets(render: Render) -> None:
    roles = {key: document for key, document in render().items() if key[0] in ("ClusterRole", "Role")}
    assert {name for _, name in roles} >= {"splitwatt-agent", "splitwatt-operator"}
    for key, document in roles.items():
        for rule in some(document["rules"]):
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"], key
            assert not {"secrets", "configmaps"} & set(rule["resources"])
            if "namespaces" in rule["resources"]:  # their labels, for rules that choose pods by them
                assert (key[1], rule["resources"], rule["verbs"]) == ("splitwatt-operator", ["namespaces"], ["list"])
            if "customresourcedefinitions" in rule["resources"]:
                assert (rule["verbs"], rule["resourceNames"]) == (["get"], ["nodepowers.splitwatt.io"])


@pytest.mark.parametrize("resource", ["nodes", "nodepowers", "powerbudgets", "customresourcedefinitions"])
def test_the_operator_may_read_afresh_whatever_lets_a_charge_go(render: Render, resource: str) -> None:
    rules = some(render()["ClusterRole", "splitwatt-operator"]["rules"])
    assert any(resource in rule["resources"] and "get" in rule["verbs"] for rule in rules)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"operator": {"replicas": "one"}}, "/operator/replicas': got string, want integer"),
        ({"operator": {"leaseSeconds": 1}}, "/operator/leaseSeconds': "),
        ({"operator": {"replicas": -1}}, "/operator/replicas': minimum: got -1, want 0"),
        ({"operator": {"prometheusUrl": "prometheus:9090"}}, "/operator/prometheusUrl': 'prometheus:9090' does not match"),
        ({"operator": {"logLevel": "loud"}}, "/operator/logLevel': value must be one of 'debug', 'info'"),
        ({"operator": {"prometheus": {"method": "PUT"}}}, "/operator/prometheus/method': value must be one of 'POST', 'GET'"),
        (
            {"operator": {"prometheus": {"matchers": ["cluster=a"]}}},
            "/operator/prometheus/matchers/0': 'cluster=a' does not match",
        ),
        (
            {"operator": {"prometheus": {"queryArgs": {"nocache": 1}}}},
            "/operator/prometheus/queryArgs/nocache': got number, want",
        ),
        ({"operator": {"agentSilenceSeconds": 1}}, "/operator/agentSilenceSeconds': minimum: got 1, want 2"),
        ({"operator": {"replica": 1}}, "/operator': additional properties 'replica' not allowed"),
        ({"agent": {"metricsPort": 80}}, "/agent/metricsPort': minimum: got 80, want 1,024"),
        ({"agent": {"sampleHertz": 100}}, "/agent/sampleHertz': maximum: got 100, want 10"),
        ({"agent": {"nodeSelector": {"gpu": True}}}, "/agent/nodeSelector/gpu': got boolean, want string"),
        ({"agent": {"stateDir": "relative"}}, "/agent/stateDir': 'relative' does not match"),
        ({"networkPolicy": {"egress": {"apiServerPorts": []}}}, "/networkPolicy/egress/apiServerPorts': minItems: got 0, want 1"),
        ({"networkPolicy": {"egress": {"prometheusPorts": [0]}}}, "prometheusPorts/0': minimum: got 0, want 1"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_wrong_value_gets_a_sentence(helm: Helm, values: Mapping[str, Any], sentence: str) -> None:
    result = helm("template", CHART, values=values)
    assert result.returncode != 0
    assert sentence in result.stderr


def test_the_shipped_values_name_every_value(render: Render) -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    shipped = yaml.safe_load((CHART / "values.yaml").read_text())
    sections = {section: said["properties"] for section, said in schema["properties"].items() if said.get("properties")}
    for section, properties in some(sections.items()):
        assert properties.keys() == shipped[section].keys(), section


def test_switches_switch_off(render: Render) -> None:
    off = {
        "crds": {"install": False},
        "profiles": {"install": False},
        "priorityClassQuota": False,
        "admission": {"agentPolicy": False, "operatorPolicy": False},
        "networkPolicy": {"enabled": False},
        "metrics": {"scrapeAnnotations": False, "prometheusRule": {"enabled": False}, "podMonitor": {"enabled": False}},
        "dashboards": {"enabled": False},
    }
    found = render(MONITORING, values=off)
    kinds = {kind for kind, _ in found}
    gone = {
        "CustomResourceDefinition", "ResourceQuota", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
        "PrometheusRule", "PodMonitor", "NetworkPolicy", "ConfigMap",
    }  # fmt: skip
    assert not kinds & gone
    assert gone <= {kind for kind, _ in render(MONITORING)}
    assert "annotations" not in found["Service", "splitwatt-agent"]["metadata"]
    publishes = "--publish-profiles"
    assert publishes not in container(found["Deployment", "splitwatt-operator"])["args"]
    assert publishes in container(render()["Deployment", "splitwatt-operator"])["args"]
    rules = some(found["ClusterRole", "splitwatt-operator"]["rules"])
    assert not any("create" in rule["verbs"] for rule in rules if "powerprofiles" in rule["resources"])


@pytest.mark.parametrize(("component", "kind"), [("operator", "Deployment"), ("agent", "DaemonSet")])
def test_nothing_but_metrics_may_be_asked_of_a_pod(render: Render, component: str, kind: str) -> None:
    found = render(values={component: {"metricsPort": 9999}, "networkPolicy": {"metricsFrom": [{"podSelector": {}}]}})
    policy = found["NetworkPolicy", f"splitwatt-{component}"]["spec"]
    pods = found[kind, f"splitwatt-{component}"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= pods.items()
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": 9999}], "from": [{"podSelector": {}}]}]
    assert "from" not in render()["NetworkPolicy", f"splitwatt-{component}"]["spec"]["ingress"][0], "everybody, unless it is said"


def test_what_pods_ask_can_be_held_to_what_they_need(render: Render) -> None:
    egress = {"enabled": True, "apiServerPorts": [16443], "prometheusPorts": [8428], "servingPorts": [9000]}
    found = render(values={"networkPolicy": {"egress": egress}})
    for component, wanted in (("operator", [16443, 8428, 9000, 53, 53]), ("agent", [16443, 53, 53])):
        policy = found["NetworkPolicy", f"splitwatt-{component}"]["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        (rule,) = policy["egress"]
        assert rule.keys() == {"ports"} and [port["port"] for port in rule["ports"]] == wanted


def test_services_say_where_to_scrape(render: Render) -> None:
    found = render()
    for name, workload in (("splitwatt-operator", "Deployment"), ("splitwatt-agent", "DaemonSet")):
        service = found["Service", name]
        (port,) = container(found[workload, name])["ports"]
        assert service["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
        labels = found[workload, name]["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()


def test_the_rule_is_left_out_where_nobody_would_read_it(render: Render) -> None:
    assert ("PrometheusRule", "splitwatt") not in render()
    labelled = render(MONITORING, values={"metrics": {"prometheusRule": {"labels": {"release": "p"}}}})
    rule = labelled["PrometheusRule", "splitwatt"]
    assert rule["metadata"]["labels"]["release"] == "p"
    plain = yaml.safe_load((CHART / "rules" / "splitwatt.yaml").read_text())
    assert rule["spec"] == plain
