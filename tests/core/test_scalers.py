"""Autoscalers that aim at what is rendered are told by name what to change."""

from __future__ import annotations

import pytest
from splitwatt_core.clusters import Role
from splitwatt_core.rendering.objects import object_name
from splitwatt_core.rendering.scalers import Autoscaler, advice
from support.served import cluster, unsplit

NAMES = ("chat", "long-" + "x" * 95)


@pytest.mark.parametrize("name", NAMES)
def test_each_role_has_its_own_advice(name: str) -> None:
    spec = cluster(name)
    said = {role: advice(Autoscaler("hpa", "Deployment", object_name(name, role)), spec) for role in spec.roles}
    for role, text in said.items():
        assert text is not None and object_name(name, role) in text
        aim = f"RoleScale, name: {object_name(name, role)}" if role is Role.PREFILL else f"InferenceCluster, name: {name}"
        assert f"kind: {aim})" in text and "HorizontalPodAutoscaler hpa" in text
    whole = unsplit(name)
    mixed = advice(Autoscaler("hpa", "Deployment", object_name(name, Role.MIXED)), whole)
    assert mixed is not None and "spec.mixed.replicas" in mixed
    assert advice(Autoscaler("hpa", "Deployment", object_name(name, Role.MIXED)), spec) is None, "it has no such Deployment"


def test_a_later_revisions_deployment_is_known_by_its_name() -> None:
    later = Autoscaler("hpa", "Deployment", "chat-decode-1a2b3c4d")
    text = advice(later, cluster("chat"), {"chat-decode-1a2b3c4d": Role.DECODE})
    assert text is not None and "Deployment chat-decode-1a2b3c4d" in text and "aim it at" in text
    assert advice(later, cluster("chat")) is None


@pytest.mark.parametrize(
    "other",
    [
        Autoscaler("hpa", "InferenceCluster", "chat"),
        Autoscaler("hpa", "Deployment", "web"),
        Autoscaler("hpa", "StatefulSet", "chat-decode"),
    ],
)
def test_an_autoscaler_of_something_else_is_nobodys_business(other: Autoscaler) -> None:
    assert advice(other, cluster("chat")) is None
