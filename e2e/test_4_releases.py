"""Upgrade, rollback, downgrade, uninstall and reinstall while requests are served: budgets hold, and objects and edits stay."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from ground import rack, serving
from ground.caps import Highest
from ground.furnish import NAMESPACE
from ground.site import CHART, OURS, RELEASE, Site
from ground.traffic import Traffic
from splitwatt_core import __version__
from splitwatt_lab.judge import Judge

PER_S = 3.0
BACK_S = 120.0
OTHER = "watts"
NEXT = f"{__version__}-next"
TAKE_OVER = "--take-ownership"
"""docs/install.md: what was kept bears the mark of the release that was."""


@pytest.fixture(scope="module")
def served(installed: Site) -> Site:
    installed.judge()
    serving.make_namespace(installed)
    serving.serve(installed, serving.inference_cluster(installed, "chat", prefill=1, decode=1))
    return installed


def uids(site: Site) -> Mapping[str, str]:
    """Of all that a release must not make anew: NodePowers, budgets, profiles and the engines' pods."""
    kinds = [("np",), ("pb",), ("powerprofiles",), ("pods", "-n", serving.NAMESPACE)]
    return {each["metadata"]["name"]: each["metadata"]["uid"] for kind in kinds for each in site.get(*kind)["items"]}


def settle(site: Site, tag: str = __version__) -> None:
    """Of these images, and all is well."""
    site.await_(f"all of ours run {tag}", lambda: tags(site) == {tag}, timeout_s=BACK_S)
    for node in site.cluster.nodes():
        site.await_ready("np", node, timeout_s=BACK_S)
    site.await_ready("pb", rack.NAME, timeout_s=BACK_S)


def tags(site: Site) -> set[str]:
    """Of the images that our pods run."""
    pods = [pod for name in OURS for pod in site.pods(name)]
    return {pod["spec"]["containers"][0]["image"].rpartition(":")[2] for pod in pods}


def next_chart(folder: Path) -> Path:
    """The chart under a version of its own."""
    chart = Path(shutil.copytree(CHART, folder / "splitwatt"))
    text = (chart / "Chart.yaml").read_text()
    (chart / "Chart.yaml").write_text(re.sub(r"^version: .*$", f"version: {NEXT}", text, flags=re.MULTILINE))
    return chart


def release(site: Site) -> tuple[str, str]:
    """Revision and chart of what is installed."""
    found = json.loads(site.cluster.helm("list", "-n", NAMESPACE, "-o", "json").stdout)
    mine = next(each for each in found if each["name"] == RELEASE)
    return str(mine["revision"]), str(mine["chart"])


def edit_a_profile(site: Site) -> tuple[str, int]:
    """Of a GPU that is not here; its name, and what a person wrote into it."""
    profile = next(each for each in site.get("powerprofiles")["items"] if "H100" not in str(each["spec"]["productNames"]))
    name, idle_w = profile["metadata"]["name"], profile["spec"]["idleWatts"] + 1
    site.cluster.kubectl("patch", "powerprofile", name, "--type=merge", "-p", json.dumps({"spec": {"idleWatts": idle_w}}))
    return name, idle_w


def test_upgrade_rollback_and_downgrade_keep_objects_edits_and_caps(served: Site, judged: Judge, tmp_path: Path) -> None:
    """Of chart and images."""
    site = served
    for name in OURS:
        site.cluster.tag(site.cluster.image(name), f"{site.cluster.registry}/splitwatt-{name}:{NEXT}")
    profile, idle_w = edit_a_profile(site)
    held = {
        (node, slot)
        for role in ("prefill", "decode")
        for node, each in serving.gpus_of(site, "chat", role).items()
        for slot in each
    }
    before, (first, _) = uids(site), release(site)
    with Traffic(site.cluster, namespace=serving.NAMESPACE, name="chat", per_s=PER_S) as asked, Highest(site) as highest:
        changed = ["--set=operator.logLevel=debug", "--set=agent.sampleHertz=4"]
        site.install(*(f"--set={name}.image.tag={NEXT}" for name in OURS), *changed, chart=next_chart(tmp_path))
        settle(site, NEXT)
        assert uids(site) == before
        second, chart = release(site)
        assert chart == f"splitwatt-{NEXT}"
        for revision, runs in ((first, __version__), (second, NEXT)):
            site.cluster.helm("rollback", RELEASE, revision, "-n", NAMESPACE, "--wait", "--timeout=180s")
            settle(site, runs)
            assert uids(site) == before
        site.install()
        settle(site)
        assert release(site)[1] == f"splitwatt-{__version__}"
    assert uids(site) == before
    assert site.get("powerprofile", profile)["spec"]["idleWatts"] == idle_w
    assert not highest.raised(but_not=held), "a GPU that nobody holds is at its lowest cap, whoever comes and goes"
    assert not asked.failed(), asked.failed()[:3]


def test_uninstall_keeps_caps_and_another_release_goes_on(served: Site, judged: Judge) -> None:
    site = served
    before = {name: uid for name, uid in uids(site).items() if name in {*site.cluster.nodes(), "row-a", rack.NAME}}
    site.cluster.helm("uninstall", RELEASE, "-n", NAMESPACE, "--wait", "--timeout=120s")
    try:
        with Highest(site) as highest:
            time.sleep(10)
        assert not highest.raised(), "nobody is there who could raise a cap"
        site.install(TAKE_OVER, release=OTHER)
        settle(site)
        after = uids(site)
        assert {name: after.get(name) for name in before} == before
    finally:
        site.cluster.helm("uninstall", OTHER, "-n", NAMESPACE, "--wait", "--timeout=120s", check=False)
        site.install(TAKE_OVER)
        settle(site)
