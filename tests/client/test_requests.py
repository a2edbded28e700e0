"""Requests to a real API server end as done, refused or unknown, and are sent once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from splitwatt_client import ConfigurationError, Connection, OutcomeUnknown, Rejected, ResourceType, connection
from splitwatt_client.resources import CONFIG_MAPS, NODE_POWERS, NODES, PODS
from splitwatt_lab.controlplane import ControlPlane
from support.flaky_proxy import flaky

MANAGER = "test"


def config_map(namespace: str, value: str = "1", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "note", "namespace": namespace, **metadata},
        "data": {"value": value},
    }


async def test_an_absent_object_and_an_unserved_kind_are_not_the_same(api: Connection, namespace: str) -> None:
    assert await api.get(CONFIG_MAPS, "nothing", namespace=namespace) is None
    assert await api.get(NODES, "nothing") is None
    with pytest.raises(Rejected) as refusal:
        await api.get(ResourceType("splitwatt.example/v1", "Nothing", "nothings", namespaced=False), "nothing")
    assert refusal.value.not_found
    with pytest.raises(Rejected):
        await api.list(ResourceType("splitwatt.example/v1", "Nothing", "nothings"))


async def test_apply_creates_changes_and_reports_the_stored_object(api: Connection, namespace: str) -> None:
    first = await api.apply(config_map(namespace), field_manager=MANAGER)
    second = await api.apply(config_map(namespace, "2"), field_manager=MANAGER)
    assert second["data"] == {"value": "2"}
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    again = await api.apply(config_map(namespace, "2"), field_manager=MANAGER)
    assert again["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
    listed = await api.list(CONFIG_MAPS, namespace=namespace, name="note")
    assert [item["kind"] for item in listed.items] == ["ConfigMap"]
    assert await api.delete(CONFIG_MAPS, "note", namespace=namespace)
    assert not await api.delete(CONFIG_MAPS, "note", namespace=namespace)


async def test_a_list_of_metadata_comes_in_pages_of_one_moment(
    api: Connection, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        await api.apply(config_map(namespace, name=name, labels={"of": "test"}), field_manager=MANAGER)
    for page in (1, 2, 500):
        monkeypatch.setattr(connection, "METADATA_PAGE", page)
        listed = await api.list_metadata(CONFIG_MAPS, namespace=namespace, label_selector="of=test")
        assert [item["metadata"]["name"] for item in listed.items] == ["a", "b", "c"]
        assert all("data" not in item and "managedFields" not in item["metadata"] for item in listed.items)
        assert int(listed.resource_version) >= max(int(item["metadata"]["resourceVersion"]) for item in listed.items)


async def test_a_write_is_bound_to_uid_and_version(api: Connection, namespace: str) -> None:
    meta = (await api.apply(config_map(namespace), field_manager=MANAGER))["metadata"]
    uid, version = meta["uid"], meta["resourceVersion"]
    await api.apply(config_map(namespace, "2"), field_manager=MANAGER)
    with pytest.raises(Rejected) as stale:
        await api.apply(config_map(namespace, "3", uid=uid, resourceVersion=version), field_manager=MANAGER)
    assert stale.value.conflict
    assert await api.delete(CONFIG_MAPS, "note", namespace=namespace, uid=uid)
    with pytest.raises(Rejected) as gone:
        await api.apply(config_map(namespace, "4", uid=uid, resourceVersion=version), field_manager=MANAGER)
    assert gone.value.conflict
    assert await api.get(CONFIG_MAPS, "note", namespace=namespace) is None, "it was not created anew"


async def test_delete_with_another_uid_is_a_conflict(api: Connection, namespace: str) -> None:
    await api.apply(config_map(namespace), field_manager=MANAGER)
    with pytest.raises(Rejected) as refusal:
        await api.delete(CONFIG_MAPS, "note", namespace=namespace, uid="00000000-0000-0000-0000-000000000000")
    assert refusal.value.conflict


async def test_refusals_carry_the_servers_sentence(crds: ControlPlane, api: Connection, namespace: str) -> None:
    await api.create(config_map(namespace))
    with pytest.raises(Rejected) as twice:
        await api.create(config_map(namespace))
    assert twice.value.conflict
    with pytest.raises(Rejected) as invalid:
        await api.create(
            {
                "apiVersion": NODE_POWERS.api_version,
                "kind": "NodePower",
                "metadata": {"name": "bad"},
                "spec": {"term": -1, "forUID": "x"},
            }
        )
    assert invalid.value.status == 422
    assert "spec.term" in invalid.value.message


async def test_forbidden_is_a_refusal(control_plane: ControlPlane, namespace: str) -> None:
    async with Connection(control_plane.token_kubeconfig(namespace, "default")) as nobody:
        with pytest.raises(Rejected) as refusal:
            await nobody.list(PODS)
    assert refusal.value.status == 403
    assert "cannot list resource" in refusal.value.message


async def test_a_merge_patch_takes_out_what_apply_cannot(api: Connection, namespace: str) -> None:
    await api.apply(config_map(namespace), field_manager="somebody")
    patched = await api.patch(CONFIG_MAPS, "note", {"data": {"value": None}}, namespace=namespace, field_manager=MANAGER)
    assert not patched.get("data")
    patched = await api.patch(
        CONFIG_MAPS, "note", [{"op": "add", "path": "/data", "value": {"a": "b"}}], namespace=namespace,
        field_manager=MANAGER,
    )  # fmt: skip
    assert patched["data"] == {"a": "b"}


async def test_a_lost_answer_is_unknown_and_the_write_was_sent_once(
    control_plane: ControlPlane, api: Connection, namespace: str, tmp_path: Path
) -> None:
    generate = {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "made-", "namespace": namespace}
    }  # fmt: skip
    async with flaky(control_plane, tmp_path) as (proxy, kubeconfig), Connection(kubeconfig, request_timeout_s=2.0) as shaky:
        await shaky.apply(config_map(namespace), field_manager=MANAGER)  # the connection is open now
        proxy.answers = False
        with pytest.raises(OutcomeUnknown):
            await shaky.create(generate)
        with pytest.raises(OutcomeUnknown):
            await shaky.get(CONFIG_MAPS, "note", namespace=namespace)
        proxy.answers = True
        proxy.cut()
        await asyncio.sleep(0.2)
        before = proxy.connections
        assert await shaky.get(CONFIG_MAPS, "note", namespace=namespace) is not None
        assert proxy.connections == before + 1
    made = [o for o in (await api.list(CONFIG_MAPS, namespace=namespace)).items if o["metadata"]["name"].startswith("made-")]
    assert len(made) == 1, "it landed although nobody heard of it, and it was not repeated"


async def test_a_connection_cut_in_the_middle_is_unknown(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    async with flaky(control_plane, tmp_path) as (proxy, kubeconfig), Connection(kubeconfig) as shaky:
        await shaky.apply(config_map(namespace), field_manager=MANAGER)
        proxy.answers = False
        writing = asyncio.create_task(shaky.apply(config_map(namespace, "2"), field_manager=MANAGER))
        await asyncio.sleep(0.5)
        proxy.cut()
        with pytest.raises(OutcomeUnknown):
            await writing


async def test_no_server_at_all_is_unknown(control_plane: ControlPlane, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "nowhere"
    kubeconfig.write_text(control_plane.kubeconfig.read_text().replace(control_plane.url, "https://127.0.0.1:9"))
    async with Connection(kubeconfig) as nowhere:
        with pytest.raises(OutcomeUnknown):
            await nowhere.list(PODS)


async def test_a_bad_kubeconfig_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("just text")
    for path in (tmp_path / "bad", tmp_path / "missing"):
        with pytest.raises(ConfigurationError, match="--kubeconfig"):
            async with Connection(path):
                pass
