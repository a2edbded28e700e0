"""Built-in profiles as objects, on a real API server: there for people to read, and theirs once they have edited one."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from splitwatt_client import Connection
from splitwatt_core.gpus.profiles import builtin
from splitwatt_core.names import ANNOTATION_PUBLISHED
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_operator import options
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.pen import Pen
from splitwatt_operator.publish import Publisher, fingerprint, manifest
from support.some import some

NAMES = sorted(profile.name.lower() for profile in builtin())
URL = "/apis/splitwatt.io/v1alpha1/powerprofiles"


@pytest.fixture
def profiles(crds: ControlPlane) -> Iterator[ControlPlane]:
    crds.kubectl("delete", "powerprofiles", *NAMES, "--ignore-not-found")
    yield crds
    crds.kubectl("delete", "powerprofiles", *NAMES, "--ignore-not-found")


@pytest.fixture
async def publisher(profiles: ControlPlane) -> AsyncIterator[Publisher]:
    async with Connection(profiles.kubeconfig) as connection:
        yield Publisher(connection, Pen(connection, Metrics(), held=lambda now_s: True))


def found(plane: ControlPlane, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = plane.http.get(f"{URL}/{name}").raise_for_status().json()
    return answer


async def publish(publisher: Publisher) -> list[bool]:
    return [await publisher._publish(profile) for profile in some(builtin())]


async def test_each_is_published_and_a_second_round_writes_nothing_new(profiles: ControlPlane, publisher: Publisher) -> None:
    assert all(await publish(publisher))
    before = [found(profiles, name)["metadata"]["resourceVersion"] for name in NAMES]
    assert all(await publish(publisher))
    assert [found(profiles, name)["metadata"]["resourceVersion"] for name in NAMES] == before
    for profile in some(builtin()):
        assert found(profiles, profile.name.lower())["spec"] == manifest(profile)["spec"], "or its mark would not fit"


EDITS = {
    "patch": ("patch", "powerprofile", "h100-sxm", "--type=merge", "-p", '{"spec":{"idleWatts":91}}'),
    "added": ("patch", "powerprofile", "h100-sxm", "--type=merge", "-p", '{"spec":{"productNames":["NVIDIA H100","Mine"]}}'),
    "only taken out": ("patch", "powerprofile", "h100-sxm", "--type=json", "-p", '[{"op":"remove","path":"/spec/phases/1"}]'),
    "json patch": (
        "patch", "powerprofile", "h100-sxm", "--type=json",
        "-p", '[{"op":"replace","path":"/spec/phases/0/cliffWatts","value":333}]',
    ),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
async def test_what_a_person_edited_stays(
    profiles: ControlPlane, publisher: Publisher, edit: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    assert all(await publish(publisher))
    profiles.kubectl(*edit)
    before = found(profiles, "h100-sxm")
    with caplog.at_level(logging.INFO):
        assert all(await publish(publisher)) and all(await publish(publisher))
    assert found(profiles, "h100-sxm") == before
    said = re.findall(r"PowerProfile h100-sxm stays as (kubectl-patch|somebody) left it", caplog.text)
    assert len(said) == 1, "once, not each hour"


async def test_what_a_tool_applies_is_the_tools(profiles: ControlPlane, publisher: Publisher) -> None:
    """Argo CD, Flux or a person who keeps one of these names in a repository."""
    own = manifest(builtin()[1])
    own["spec"]["idleWatts"] = 91
    apply(profiles, own, manager="argocd-controller")
    assert all(await publish(publisher))
    assert found(profiles, own["metadata"]["name"])["spec"]["idleWatts"] == 91


async def test_what_nobody_edited_follows_the_version(profiles: ControlPlane, publisher: Publisher) -> None:
    """An older version's numbers are brought up to date, also where it knew more of them; the object stays the same."""
    a100 = manifest(builtin()[0])
    old = json.loads(json.dumps(a100))
    old["spec"]["idleWatts"] += 7
    old["spec"]["phases"].append({**old["spec"]["phases"][0], "model": "of-old"})
    old["metadata"]["annotations"] = {ANNOTATION_PUBLISHED: fingerprint(old["spec"])}
    apply(profiles, old, manager="splitwatt-operator")
    before = found(profiles, a100["metadata"]["name"])
    assert fingerprint(before["spec"]) == fingerprint(old["spec"])
    assert all(await publish(publisher))
    after = found(profiles, a100["metadata"]["name"])
    assert after["spec"] == a100["spec"] != before["spec"]
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


@pytest.mark.parametrize("edited", [False, True])
async def test_what_a_hook_of_an_older_chart_made_is_taken_over_unless_it_was_edited(
    profiles: ControlPlane, publisher: Publisher, edited: bool
) -> None:
    old = manifest(builtin()[0])
    name = old["metadata"]["name"]
    old["metadata"]["annotations"] = {"helm.sh/hook": "post-install,post-upgrade"}
    apply(profiles, old, manager="helm")
    if edited:  # by taking out, which leaves no manager
        profiles.kubectl("patch", "powerprofile", name, "--type=json", "-p", '[{"op":"remove","path":"/spec/phases/1"}]')
    assert all(await publish(publisher))
    after = found(profiles, name)
    assert (ANNOTATION_PUBLISHED in after["metadata"]["annotations"]) is not edited
    assert len(after["spec"]["phases"]) == len(old["spec"]["phases"]) - edited


def apply(plane: ControlPlane, obj: dict[str, Any], *, manager: str) -> None:
    plane.kubectl("apply", "--server-side", f"--field-manager={manager}", "-f", "-", stdin=json.dumps(obj))


async def test_a_chart_of_somebodys_own_is_no_hook_of_ours(profiles: ControlPlane, publisher: Publisher) -> None:
    own = manifest(builtin()[0])
    own["spec"]["idleWatts"] += 7
    apply(profiles, own, manager="helm")
    assert all(await publish(publisher))
    assert found(profiles, own["metadata"]["name"])["spec"]["idleWatts"] == own["spec"]["idleWatts"]


async def test_an_edit_between_look_and_write_is_not_overwritten(profiles: ControlPlane, publisher: Publisher) -> None:
    assert all(await publish(publisher))

    class Late(Pen):
        async def apply(self, manifest: Any, *, subresource: str | None = None) -> Any:
            profiles.kubectl(*EDITS["patch"])
            return await super().apply(manifest, subresource=subresource)

    async with Connection(profiles.kubeconfig) as connection:
        late = Publisher(connection, Late(connection, Metrics(), held=lambda now_s: True))
        h100 = next(profile for profile in builtin() if profile.name == "H100-SXM")
        assert await late._publish(h100) is False
    assert found(profiles, "h100-sxm")["spec"]["idleWatts"] == 91


async def test_without_the_lease_nothing_is_written_and_it_is_tried_again(
    profiles: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    async with Connection(profiles.kubeconfig) as connection:
        publisher = Publisher(connection, Pen(connection, Metrics(), held=lambda now_s: False))
        assert not any(await publish(publisher))
    assert "PowerProfile h100-sxm was not published: not sent: the Lease is not surely held" in caplog.text
    assert not profiles.http.get(URL).json()["items"]


def test_it_publishes_where_the_chart_says_so() -> None:
    assert options.parse(["--prometheus-url=http://p:1", "--publish-profiles"]).publish_profiles
    assert not options.parse(["--prometheus-url=http://p:1"]).publish_profiles
