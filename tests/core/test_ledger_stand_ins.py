"""GPUs that never said who they are stand in by their index, and are charged once when they have a name."""

from __future__ import annotations

import pytest
from splitwatt_core.protocol.contract import UNREADABLE_PREFIX, GpuStatus, Health
from splitwatt_core.protocol.node_account import NodeAccount
from support.ledgers import NOW_S, TERM, line, node, reading, settled_w, version


def stand_in(index: int) -> GpuStatus:
    return reading(0, None, f"{UNREADABLE_PREFIX}{index}", health=Health.LOST)


def charged(account: NodeAccount) -> dict[str, int]:
    settled_w(account)
    return {uuid: gpu.charge_w for uuid, gpu in account.gpus.items()}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_gpu_that_gets_its_name_is_charged_once(restarted: bool) -> None:
    lines = (line(5, 200), line(5, 700, uuid=f"{UNREADABLE_PREFIX}1"))
    account = node(version(1, *lines, status=(reading(5, 200), stand_in(1))))
    assert charged(account) == {"g0": 200, f"{UNREADABLE_PREFIX}1": 700}
    named = version(2, *lines, status=(reading(5, 200), reading(0, 700, "g1")))
    account = node(named) if restarted else account
    account.observe(named, NOW_S, term=TERM)
    assert charged(account) == {"g0": 200, "g1": 700}
    account.observe(
        version(3, *lines, line(6, 300, uuid="g1"), status=(reading(5, 200), reading(6, 300, "g1"))), NOW_S, term=TERM
    )
    assert charged(account) == {"g0": 200, "g1": 300}, "an old line brings no stand-in back"


def test_a_gpu_that_was_known_and_answers_again_takes_the_place_of_its_stand_in() -> None:
    """An agent whose disk was lost lists by index what it cannot reach."""
    both = (reading(5, 200), reading(5, 200, "g1"))
    account = node(version(1, line(5, 200), line(5, 200, uuid="g1"), status=both))
    account.observe(version(2, status=(reading(5, 200), stand_in(1))), NOW_S, term=TERM)
    assert charged(account) == {"g0": 200, "g1": 700, f"{UNREADABLE_PREFIX}1": 700}
    account.observe(version(3, line(5, 200), line(5, 200, uuid="g1"), status=both), NOW_S, term=TERM)
    assert charged(account) == {"g0": 200, "g1": 200}


def test_a_stand_in_that_goes_while_nobody_comes_is_lost() -> None:
    two = (reading(5, 200), stand_in(1), stand_in(2))
    account = node(version(1, line(5, 200), status=two))
    empty = version(2, line(5, 200))
    for seen in (empty, version(3, line(5, 200), status=two[:1])):
        account.observe(seen, NOW_S, term=TERM)
        assert [charged(account)[gpu.uuid] for gpu in two[1:]] == [700, 700]
    one = (reading(5, 200), reading(0, 700, "g1"))
    account.observe(version(4, line(5, 200), status=one), NOW_S, term=TERM)
    assert sorted(charged(account).values()) == [200, 700, 700], "one has a name, the other is lost"
