"""Leases on a real API server: one holder, and a term that is new for every holding."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from splitwatt_client import Connection
from splitwatt_client.leases import HeldLease, LeaseLostError
from splitwatt_client.resources import LEASES
from splitwatt_core.protocol import candidacy
from splitwatt_core.protocol.candidacy import Candidacy
from splitwatt_lab.controlplane import ControlPlane
from support.flaky_proxy import flaky

DURATION_S = 3
PATIENCE_S = 60.0


def candidate(
    api: Connection, namespace: str, identity: str = "same-name", *, duration_s: int = DURATION_S, rule: Candidacy | None = None
) -> HeldLease:
    seen = rule or Candidacy(duration_s=duration_s)
    return HeldLease(api, namespace=namespace, name="power", identity=identity, field_manager="test", rule=seen)


async def nothing_seen(last: int | None) -> int:
    return (last or 0) + 1


async def acquired(lease: HeldLease, floor: int = 0) -> int:
    async def seen(last: int | None) -> int:
        return max(last or 0, floor) + 1

    return await asyncio.wait_for(lease.acquire(seen), PATIENCE_S)


async def test_terms_rise_above_the_floor_and_are_never_used_twice(api: Connection, namespace: str) -> None:
    terms = []
    for floor in (0, 41, 7):
        lease = candidate(api, namespace)
        terms.append(await acquired(lease, floor))
        assert lease.held(time.monotonic())
        await lease.release()
        assert not lease.held(time.monotonic())
    assert terms == [1, 42, 43]
    stored = await api.get(LEASES, "power", namespace=namespace)
    assert stored is not None
    assert stored["spec"]["leaseTransitions"] == 43


async def test_a_deleted_lease_does_not_reset_terms_where_the_floor_knows_better(api: Connection, namespace: str) -> None:
    lease = candidate(api, namespace)
    assert await acquired(lease, 9) == 10
    await api.delete(LEASES, "power", namespace=namespace)
    assert await acquired(candidate(api, namespace), 10) == 11


async def test_a_renewed_lease_is_not_taken_and_an_abandoned_one_is(api: Connection, namespace: str) -> None:
    holder, waiting = candidate(api, namespace), candidate(api, namespace)
    assert await acquired(holder) == 1
    keeping = asyncio.create_task(holder.keep())
    taking = asyncio.create_task(waiting.acquire(nothing_seen))
    await asyncio.sleep(2 * DURATION_S)
    assert holder.held(time.monotonic())
    assert not taking.done()
    keeping.cancel()
    term = await asyncio.wait_for(taking, PATIENCE_S)
    assert term == 2
    assert not holder.held(time.monotonic()), "the old holder's time was over before the new one's began"
    with pytest.raises(LeaseLostError):
        await asyncio.wait_for(holder.keep(), PATIENCE_S)


async def test_a_duration_that_no_holder_counts_by_keeps_nobody_waiting(
    api: Connection, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person's slip in the Lease of an operator that is gone."""
    gone = candidate(api, namespace, "gone", duration_s=2**31 - 1)
    assert await acquired(gone) == 1
    monkeypatch.setattr(candidacy, "MAX_DURATION_S", 2.0)
    began_s = time.monotonic()
    assert await acquired(candidate(api, namespace, "quick", duration_s=1)) == 2
    assert 2.0 <= time.monotonic() - began_s < PATIENCE_S / 2


async def test_of_many_candidates_one_gets_it(api: Connection, namespace: str) -> None:
    candidates = [candidate(api, namespace) for _ in range(8)]
    tasks = [asyncio.create_task(c.acquire(nothing_seen)) for c in candidates]
    await asyncio.wait(tasks, timeout=DURATION_S * 0.6, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.2)
    holding = [c for c in candidates if c.held(time.monotonic())]
    assert len(holding) == 1
    assert len({c.identity for c in candidates}) == 8
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_holder_without_answers_stops_before_anybody_else_starts(
    control_plane: ControlPlane, api: Connection, namespace: str, tmp_path: Path
) -> None:
    async with flaky(control_plane, tmp_path) as (proxy, kubeconfig), Connection(kubeconfig, request_timeout_s=1.0) as shaky:
        holder = candidate(shaky, namespace)
        assert await acquired(holder) == 1
        keeping = asyncio.create_task(holder.keep())
        await asyncio.sleep(DURATION_S / 2)
        proxy.answers = False  # renewals still land: their outcome is unknown to the holder
        await no_longer_held(holder)
        proxy.accepts = False
        proxy.cut()
        lost_s = time.monotonic()
        assert await acquired(candidate(api, namespace)) == 2
        assert time.monotonic() > lost_s
        proxy.accepts = proxy.answers = True
        proxy.cut()
        with pytest.raises(LeaseLostError, match="is held by same-name_"):
            await asyncio.wait_for(keeping, PATIENCE_S)
        assert not holder.held(time.monotonic())


async def no_longer_held(holder: HeldLease) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while holder.held(time.monotonic()):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)


async def held_again(holder: HeldLease) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holder.held(time.monotonic()):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)


async def test_a_silence_in_which_nobody_took_it_is_outlived_with_the_same_term(
    control_plane: ControlPlane, api: Connection, namespace: str, tmp_path: Path
) -> None:
    async with flaky(control_plane, tmp_path) as (proxy, kubeconfig), Connection(kubeconfig, request_timeout_s=1.0) as shaky:
        holder = candidate(shaky, namespace)
        await acquired(holder)
        keeping = asyncio.create_task(holder.keep())
        for _ in range(2):
            proxy.answers = False
            await no_longer_held(holder)
            await asyncio.sleep(DURATION_S)
            proxy.answers = True
            proxy.cut()
            await held_again(holder)
        stored = await api.get(LEASES, "power", namespace=namespace)
        assert stored is not None
        assert (stored["spec"]["leaseTransitions"], stored["spec"]["holderIdentity"]) == (1, holder.identity)
        assert holder.term == 1
        assert time.monotonic() - holder.judged_s < DURATION_S
        keeping.cancel()


@pytest.mark.parametrize("how", ["another term", "made anew", "given back"])
async def test_a_lease_that_was_anybody_elses_meanwhile_is_lost(
    control_plane: ControlPlane, api: Connection, namespace: str, tmp_path: Path, how: str
) -> None:
    """Also where its record names us in the end."""
    async with flaky(control_plane, tmp_path) as (proxy, kubeconfig), Connection(kubeconfig, request_timeout_s=1.0) as shaky:
        holder = candidate(shaky, namespace)
        await acquired(holder)
        keeping = asyncio.create_task(holder.keep())
        proxy.accepts = False
        proxy.cut()
        await no_longer_held(holder)
        found = await api.get(LEASES, "power", namespace=namespace)
        assert found is not None
        if how == "made anew":
            await api.delete(LEASES, "power", namespace=namespace)
            body = {**found, "metadata": {"name": "power", "namespace": namespace}}
            await api.create(body, field_manager="test")
        else:
            changed = {"leaseTransitions": 2} if how == "another term" else {"holderIdentity": ""}
            await api.patch(LEASES, "power", {"spec": changed}, namespace=namespace, field_manager="test")
        proxy.accepts = True
        with pytest.raises(LeaseLostError):
            await asyncio.wait_for(keeping, PATIENCE_S)
        assert not holder.held(time.monotonic())


async def test_a_renewal_that_landed_unheard_is_recognised(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    async with flaky(control_plane, tmp_path) as (proxy, kubeconfig), Connection(kubeconfig, request_timeout_s=0.5) as shaky:
        holder = candidate(shaky, namespace, "a", duration_s=10)
        assert await acquired(holder) == 1
        keeping = asyncio.create_task(holder.keep())
        proxy.answers = False
        await asyncio.sleep(3.0)  # one renewal is sent and lands, its answer is lost
        proxy.answers = True
        proxy.cut()
        await asyncio.sleep(10.0)
        assert not keeping.done()
        assert holder.held(time.monotonic())
        keeping.cancel()


async def test_a_taken_lease_is_noticed_at_the_next_renewal(api: Connection, namespace: str) -> None:
    holder = candidate(api, namespace)
    await acquired(holder)
    await api.patch(LEASES, "power", {"spec": {"holderIdentity": "thief"}}, namespace=namespace, field_manager="thief")
    with pytest.raises(LeaseLostError, match="held by thief"):
        await asyncio.wait_for(holder.keep(), PATIENCE_S)
    assert not holder.held(time.monotonic())


async def test_what_was_seen_counts_through_candidacies(api: Connection, namespace: str) -> None:
    """Whoever has watched a record for its whole time need not watch it again."""
    dead = candidate(api, namespace, "dead")
    assert await acquired(dead) == 1
    rule = Candidacy(duration_s=DURATION_S)
    looking = asyncio.create_task(candidate(api, namespace, "early", rule=rule).look())
    await asyncio.sleep(DURATION_S + 0.5)
    looking.cancel()
    began_s = time.monotonic()
    assert await acquired(candidate(api, namespace, "later", rule=rule)) == 2
    assert time.monotonic() - began_s < DURATION_S / 2


async def test_a_holder_whose_life_is_ours_is_dead(api: Connection, namespace: str) -> None:
    ours, theirs = "0123456789abcdef", "fedcba9876543210"
    assert await acquired(candidate(api, namespace, rule=Candidacy(duration_s=DURATION_S, life=ours))) == 1
    other = asyncio.create_task(acquired(candidate(api, namespace, rule=Candidacy(duration_s=DURATION_S, life=theirs))))
    await asyncio.sleep(DURATION_S / 2)
    assert not other.done(), "nothing is proven of another life"
    began_s = time.monotonic()
    assert await acquired(candidate(api, namespace, rule=Candidacy(duration_s=DURATION_S, life=ours))) == 2
    assert time.monotonic() - began_s < DURATION_S / 2
    other.cancel()


async def test_a_lease_that_a_person_deleted_is_not_taken_while_its_holder_may_send(api: Connection, namespace: str) -> None:
    holder, waiting = candidate(api, namespace), candidate(api, namespace)
    await acquired(holder)
    taking = asyncio.create_task(waiting.acquire(nothing_seen))
    await asyncio.sleep(1.0)
    await api.delete(LEASES, "power", namespace=namespace)
    while not taking.done():
        assert not (waiting.held(time.monotonic()) and holder.held(time.monotonic()))
        await asyncio.sleep(0.02)
    assert not holder.held(time.monotonic())


async def test_a_lease_given_up_is_taken_at_once_by_who_watched(api: Connection, namespace: str) -> None:
    holder = candidate(api, namespace)
    await acquired(holder)
    taking = asyncio.create_task(candidate(api, namespace).acquire(nothing_seen))
    await asyncio.sleep(1.0)
    await holder.release()
    began_s = time.monotonic()
    assert await asyncio.wait_for(taking, PATIENCE_S) == 2
    assert time.monotonic() - began_s < DURATION_S / 2
