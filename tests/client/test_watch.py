"""Watches of a real API server: nothing is missed, nothing ends silently."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from splitwatt_client import (
    Changed,
    Connection,
    Deleted,
    Interrupted,
    OutcomeUnknown,
    Synced,
    WatchEvent,
    watch,
    watching,
)
from splitwatt_client.resources import CONFIG_MAPS
from splitwatt_client.watching import _GoneError, _query, _Stream
from splitwatt_lab.components import Component
from splitwatt_lab.controlplane import ControlPlane
from support.flaky_proxy import flaky

PATIENCE_S = 60.0


async def put(api: Connection, namespace: str, name: str, value: str) -> dict[str, Any]:
    return await api.apply(
        {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace},
            "data": {"value": value},
        },
        field_manager="test",
    )  # fmt: skip


async def following(events: AsyncGenerator[WatchEvent, None]) -> WatchEvent:
    return await asyncio.wait_for(anext(events), PATIENCE_S)


async def until_value(events: AsyncGenerator[WatchEvent, None], value: str) -> list[WatchEvent]:
    """All events up to the first that shows this value."""
    seen: list[WatchEvent] = []
    async with asyncio.timeout(PATIENCE_S):
        while True:
            event = await anext(events)
            seen.append(event)
            shown = event.items if isinstance(event, Synced) else [event.obj] if isinstance(event, Changed) else []
            if any(obj.get("data", {}).get("value") == value for obj in shown):
                return seen


async def test_first_everything_then_every_change(api: Connection, namespace: str) -> None:
    await put(api, namespace, "a", "1")
    events = watch(api, CONFIG_MAPS, namespace=namespace)
    first = await following(events)
    assert isinstance(first, Synced)
    assert "a" in {obj["metadata"]["name"] for obj in first.items}
    await put(api, namespace, "b", "2")
    changed = await following(events)
    assert isinstance(changed, Changed)
    assert changed.obj["data"] == {"value": "2"}
    await api.delete(CONFIG_MAPS, "a", namespace=namespace)
    gone = await following(events)
    assert isinstance(gone, Deleted)
    assert gone.obj["metadata"]["name"] == "a"
    await events.aclose()


async def test_a_watch_of_one_name_sees_only_that(api: Connection, namespace: str) -> None:
    events = watch(api, CONFIG_MAPS, namespace=namespace, name="mine")
    first = await following(events)
    assert isinstance(first, Synced)
    assert first.items == ()
    await put(api, namespace, "other", "1")
    await put(api, namespace, "mine", "2")
    changed = await following(events)
    assert isinstance(changed, Changed)
    assert changed.obj["metadata"]["name"] == "mine"
    await events.aclose()


async def test_a_watch_that_the_server_ends_goes_on_without_a_gap(api: Connection, namespace: str) -> None:
    events = watch(api, CONFIG_MAPS, namespace=namespace, name="mine", server_timeout_s=1)
    assert isinstance(await following(events), Synced)
    for value in ("1", "2", "3"):
        await asyncio.sleep(1.5)
        await put(api, namespace, "mine", value)
        event = await following(events)
        assert isinstance(event, Changed), "resumed, not listed again"
        assert event.obj["data"] == {"value": value}
    await events.aclose()


async def test_a_watch_that_ends_early_begins_with_a_new_list(
    api: Connection, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server goes away, and what comes back may serve a restored store: no version seen before is a place to resume."""
    monkeypatch.setattr(watching, "_query", lambda name, label, field, _: _query(name, label, field, 1))
    events = watch(api, CONFIG_MAPS, namespace=namespace, name="mine", server_timeout_s=60)
    assert isinstance(await following(events), Synced)
    await put(api, namespace, "mine", "1")
    assert isinstance(await following(events), Changed)
    interrupted = await following(events)
    assert isinstance(interrupted, Interrupted)
    assert str(interrupted.failure) == "watch of configmaps: the server ended it early"
    again = await following(events)
    assert isinstance(again, Synced)
    assert [obj["data"] for obj in again.items] == [{"value": "1"}]
    await events.aclose()


async def test_a_cut_watch_goes_on(control_plane: ControlPlane, api: Connection, namespace: str, tmp_path: Path) -> None:
    async with flaky(control_plane, tmp_path) as (proxy, kubeconfig), Connection(kubeconfig) as shaky:
        events = watch(shaky, CONFIG_MAPS, namespace=namespace, name="mine")
        assert isinstance(await following(events), Synced)
        await put(api, namespace, "mine", "1")
        await until_value(events, "1")
        proxy.cut()
        await put(api, namespace, "mine", "2")
        seen = await until_value(events, "2")
        assert any(isinstance(event, Interrupted) for event in seen)
        await events.aclose()


async def test_a_watch_that_dies_silently_is_noticed(
    control_plane: ControlPlane, api: Connection, namespace: str, tmp_path: Path
) -> None:
    async with flaky(control_plane, tmp_path) as (proxy, kubeconfig), Connection(kubeconfig, request_timeout_s=2.0) as shaky:
        events = watch(shaky, CONFIG_MAPS, namespace=namespace, name="mine", max_silence_s=2.0)
        assert isinstance(await following(events), Synced)
        await put(api, namespace, "mine", "0")
        await until_value(events, "0")
        proxy.answers = False
        await put(api, namespace, "mine", "1")
        interrupted = await following(events)
        assert isinstance(interrupted, Interrupted)
        assert "nothing heard" in str(interrupted.failure)
        proxy.answers = True
        proxy.cut()
        await until_value(events, "1")
        await events.aclose()


async def test_changes_arrive_after_the_api_server_restarts(control_plane: ControlPlane, api: Connection, namespace: str) -> None:
    events = watch(api, CONFIG_MAPS, namespace=namespace, name="mine")
    assert isinstance(await following(events), Synced)
    for value in range(5):
        await put(api, namespace, "other", str(value))  # the store moves on past what this watch has seen
    await asyncio.to_thread(control_plane.restart, Component.API_SERVER)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await put(api, namespace, "mine", "after")
                break
            except OutcomeUnknown:
                await asyncio.sleep(0.2)
    await until_value(events, "after")
    await events.aclose()


async def test_a_version_that_is_too_old_is_told_apart(api: Connection, namespace: str) -> None:
    stream = _Stream(api, CONFIG_MAPS, version="1", max_silence_s=10.0)
    with pytest.raises(_GoneError):
        async for _ in stream.follow(_query(None, None, None, 5), namespace=namespace):
            pass


async def test_a_periodic_list_puts_right_what_a_watch_missed(api: Connection, namespace: str) -> None:
    events = watch(api, CONFIG_MAPS, namespace=namespace, relist_s=1.5, server_timeout_s=1)
    lists = 0
    async with asyncio.timeout(PATIENCE_S):
        async for event in events:
            lists += isinstance(event, Synced)
            if lists == 3:
                break
    assert lists == 3
    await events.aclose()
