"""What the service accounts must be allowed, and what they lack. The list is held to the chart's roles by a test. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from splitwatt_core.conditions import some
from splitwatt_core.names import API_GROUP

from splitwatt_cli.doctor.facts import Right, SiteFacts
from splitwatt_cli.finding import Finding, Gravity

OPERATOR: Final = "splitwatt-operator"
AGENT: Final = "splitwatt-agent"
LEASE: Final = "splitwatt-operator"
_READ: Final = ("list", "watch")
_OWN: Final = ("get", "list", "watch", "create", "patch", "delete")
_OPERATOR: Final = (
    (API_GROUP, ("inferenceclusters", "powerprofiles"), _READ, ""),
    (API_GROUP, ("powerbudgets",), ("get", *_READ), ""),
    (API_GROUP, ("inferenceclusters/status", "powerbudgets/status", "rolescales/status"), ("patch",), ""),
    (API_GROUP, ("rolescales",), (*_READ, "create", "patch"), ""),
    (API_GROUP, ("inferenceclusters/finalizers",), ("update",), ""),
    (API_GROUP, ("nodepowers",), _OWN, ""),
    ("apiextensions.k8s.io", ("customresourcedefinitions",), ("get",), f"nodepowers.{API_GROUP}"),
    ("", ("nodes",), ("get", *_READ), ""),
    ("coordination.k8s.io", ("leases",), _READ, ""),
    ("", ("namespaces",), ("list",), ""),
    ("", ("pods",), ("get", *_READ, "patch"), ""),
    ("apps", ("deployments",), _OWN, ""),
    ("", ("services", "serviceaccounts"), _OWN, ""),
    ("policy", ("poddisruptionbudgets",), _OWN, ""),
    ("rbac.authorization.k8s.io", ("roles", "rolebindings"), _OWN, ""),
    ("inference.networking.k8s.io", ("inferencepools",), _OWN, ""),
    ("leaderworkerset.x-k8s.io", ("leaderworkersets",), ("get", "list", "create", "patch", "delete"), ""),
    ("llm-d.ai", ("inferenceobjectives", "inferencemodelrewrites"), ("get", *_READ), ""),
    ("inference.networking.x-k8s.io", ("inferenceobjectives", "inferencemodelrewrites"), ("get", *_READ), ""),
    ("autoscaling", ("horizontalpodautoscalers",), ("list",), ""),
    ("events.k8s.io", ("events",), ("create",), ""),
)  # group, resources, verbs, name
_AGENT: Final = (
    (API_GROUP, ("nodepowers",), ("get", *_READ), ""),
    (API_GROUP, ("nodepowers/status",), ("patch",), ""),
    ("", ("nodes",), ("get", *_READ), ""),
    ("resource.k8s.io", ("resourceslices",), ("get", "list"), ""),
)


def needed(namespace: str) -> list[Right]:
    """Of both accounts. The operator's Lease lies in its own namespace."""
    cluster_wide = [
        Right(account, verb, group, resource, name)
        for account, rules in ((OPERATOR, _OPERATOR), (AGENT, _AGENT))
        for group, resources, verbs, name in rules
        for resource in resources
        for verb in verbs
    ]
    leases = [Right(OPERATOR, verb, "coordination.k8s.io", "leases", LEASE, namespace) for verb in ("get", "patch")]
    return [*cluster_wide, *leases, Right(OPERATOR, "create", "coordination.k8s.io", "leases", "", namespace)]


def check(facts: SiteFacts) -> Iterator[Finding]:
    if facts.rights_problem:
        text = f"what the service accounts may do cannot be told: {facts.rights_problem}"
        yield Finding(Gravity.WARNING, "RightsUnread", "", text, "kubectl auth can-i create subjectaccessreviews")
    namespace = facts.seen.namespace
    for account in (OPERATOR, AGENT):
        lacks = [right for right in facts.refused if right.account == account]
        if lacks:
            text = f"may not {some([right.words for right in lacks], between=', ')}"
            fix = f"helm upgrade splitwatt helm/splitwatt -n {namespace} --reuse-values   # writes its roles anew"
            yield Finding(Gravity.BROKEN, "MissingRights", f"ServiceAccount {namespace}/{account}", text, fix)
