"""Upgrade, rollback, uninstall and reinstall while requests are served: budgets hold, and objects and edits stay."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
from ground import serving
from ground.furnish import NAMESPACE
from ground.site import RELEASE, Site
from ground.traffic import Traffic
from splitwatt_lab.judge import Judge

PER_S = 3.0
BACK_S = 120.0
OTHER = "watts"
EDITED = {"example.com/edited": "by a person"}


@pytest.fixture(scope="module")
def served(installed: Site) -> Site:
    serving.make_namespace(installed)
    serving.serve(installed, serving.inference_cluster(installed, "chat", prefill=1, decode=1))
    return installed


def uids(site: Site) -> Mapping[str, str]:
    """Of all that a release must not make anew: NodePowers, budgets, profiles and the engines' pods."""
    kinds = [("np",), ("pb",), ("powerprofiles",), ("pods", "-n", serving.NAMESPACE)]
    return {each["metadata"]["name"]: each["metadata"]["uid"] for kind in kinds for each in site.get(*kind)["items"]}


def settle(site: Site) -> None:
    for node in site.cluster.nodes():
        site.await_ready("np", node, timeout_s=BACK_S)
    site.await_ready("pb", "rack-a1", timeout_s=BACK_S)


def test_upgrade_and_rollback_keep_objects_edits_and_budgets(served: Site, judged: Judge) -> None:
    site = served
    profile = site.get("powerprofiles")["items"][0]["metadata"]["name"]
    annotation, value = next(iter(EDITED.items()))
    site.cluster.kubectl("annotate", "powerprofile", profile, f"{annotation}={value}", "--overwrite")
    before = uids(site)
    with Traffic(site.cluster, namespace=serving.NAMESPACE, name="chat", per_s=PER_S) as asked:
        site.install("--set=operator.logLevel=debug", "--set=agent.sampleHertz=4")
        settle(site)
        assert uids(site) == before
        site.cluster.helm("rollback", RELEASE, "-n", NAMESPACE, "--wait", "--timeout=180s")
        settle(site)
    assert uids(site) == before
    assert site.get("powerprofile", profile)["metadata"]["annotations"].get(annotation) == value
    assert not asked.failed(), asked.failed()[:3]


def test_uninstall_keeps_caps_and_another_release_goes_on(served: Site, judged: Judge) -> None:
    site = served
    before = {name: uid for name, uid in uids(site).items() if name in {*site.cluster.nodes(), "row-a", "rack-a1"}}
    caps = site.enforced_w()
    site.cluster.helm("uninstall", RELEASE, "-n", NAMESPACE, "--wait", "--timeout=120s")
    try:
        time.sleep(10)
        assert site.enforced_w() == caps, "nobody is there who could raise a cap"
        site.install(release=OTHER)
        settle(site)
        after = uids(site)
        assert {name: after.get(name) for name in before} == before
    finally:
        site.cluster.helm("uninstall", OTHER, "-n", NAMESPACE, "--wait", "--timeout=120s", check=False)
        site.install()
        settle(site)
