"""When a limit that changes without us is a fight, and when it is not."""

from __future__ import annotations

from splitwatt_core.protocol.contest import LEAST_TIMES, STEPS, WINDOW_S, Contest, ContestWatch


def held(limit_mw: int = 400_000) -> ContestWatch:
    watch = ContestWatch()
    watch.called(limit_mw)
    watch.see(0.0, 700_000, calling=True)
    watch.see(0.1, limit_mw, calling=False)
    return watch


def fight(watch: ContestWatch, times: int, *, every_s: float, to_mw: int = 700_000, from_s: float = 1.0) -> None:
    for i in range(times):
        now_s = from_s + i * every_s
        watch.see(now_s, to_mw, calling=False)
        watch.called(400_000)
        watch.see(now_s + every_s / 2, 400_000, calling=False)


def test_what_happens_again_and_again_is_a_fight_and_names_the_other_limit() -> None:
    watch = held()
    fight(watch, LEAST_TIMES - 1, every_s=2.0)
    assert watch.contest is None, "once or twice is a person, or a reset"
    fight(watch, 1, every_s=2.0, to_mw=650_500, from_s=10.0)
    assert watch.contest == Contest(651, LEAST_TIMES)


def test_a_fight_in_which_the_other_hand_lowers_is_one_too() -> None:
    watch = held()
    fight(watch, LEAST_TIMES, every_s=2.0, to_mw=200_000)
    assert watch.contest == Contest(200, LEAST_TIMES)


def test_how_often_is_told_in_steps_and_bounded() -> None:
    watch = held()
    told: list[int] = []
    for _ in range(300):
        fight(watch, 1, every_s=0.2, from_s=1.0 + 0.2 * len(told))
        told.append(watch.contest.times if watch.contest is not None else 0)
    assert sorted(set(told)) == [0, *STEPS]


def test_a_fight_that_is_over_is_no_longer_told() -> None:
    watch = held()
    fight(watch, 5, every_s=2.0)
    watch.see(WINDOW_S + 20.0, 400_000, calling=False)
    assert watch.contest is None


def test_a_setter_that_lies_or_clamps_and_a_call_under_way_are_nobody_else() -> None:
    lying = ContestWatch()
    for i in range(20):
        lying.called(400_000)
        lying.see(float(i), 700_000, calling=False)
    assert lying.contest is None
    slow = held()
    for i in range(20):
        slow.called(400_000 - i)
        slow.see(float(i), 450_000, calling=True)
        slow.see(float(i), None, calling=False)
    assert slow.contest is None
