"""The scenes as data, the pairs that are drawn from them, and the small tools that single processes are broken with."""

from __future__ import annotations

import random
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from splitwatt_lab.errors import LabError
from splitwatt_lab.faults import expectations as say
from splitwatt_lab.faults.catalogue import SCENES
from splitwatt_lab.faults.clocks import Clocks
from splitwatt_lab.faults.command import chosen
from splitwatt_lab.faults.expectations import NODES
from splitwatt_lab.faults.ground import Ground, ground_spec
from splitwatt_lab.faults.play import Laid, Play
from splitwatt_lab.faults.relay import Relays
from splitwatt_lab.faults.report import BEGIN, END, rewrite
from splitwatt_lab.faults.scene import API_SERVER, FaultBase, draw_pairs, pair_of
from splitwatt_lab.scenario import wiring

PAGE = Path(__file__).resolve().parents[2] / "docs" / "safety.md"


def test_there_are_scenes_enough_and_ten_of_them_are_fast() -> None:
    assert len(SCENES) >= 45
    assert sum(scene.fast for scene in SCENES.values()) >= 10
    assert sum(scene.convicted for scene in SCENES.values()) == 1


def test_scenes_lay_hands_only_on_what_the_ground_has() -> None:
    nodes = {node.name for node in ground_spec(seed=1).nodes()}
    assert set(NODES) == nodes
    budgets = set(wiring(ground_spec(seed=1)).feeds)
    for scene in SCENES.values():
        assert scene.touches, scene.name
        assert {scene.cut, *scene.steady} - {None} <= budgets
        for touch in scene.touches:
            kind, _, name = touch.partition(":")
            assert kind not in ("agent", "node", "np", "label", "lease") or name in {*nodes, ""}, touch


def test_every_promise_is_one_sentence_of_its_own_or_says_the_same_as_its_neighbour() -> None:
    for scene in SCENES.values():
        assert scene.promise.endswith("."), scene.name
        assert len(scene.promise) <= 130, scene.name


def test_pairs_are_many_differ_never_touch_the_same_and_follow_from_the_seed() -> None:
    drawn = draw_pairs(tuple(SCENES.values()), 40, random.Random("7/pairs"))
    assert len({pair.name for pair in drawn}) == 40
    for pair in drawn:
        first, second = (SCENES[name] for name in pair.name.split(" + "))
        assert not first.touches & second.touches
        assert first.paired
        assert second.paired
        assert len(pair.faults) == len(first.faults) + len(second.faults)
    assert [p.name for p in drawn] == [p.name for p in draw_pairs(tuple(SCENES.values()), 40, random.Random("7/pairs"))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Healed(FaultBase):
    """Notes when it is healed."""

    name: str
    order: list[str]

    def lay(self, ground: Ground, rng: random.Random) -> None: ...

    def heal(self, ground: Ground) -> None:
        self.order.append(self.name)


def test_beside_a_missing_api_server_the_other_fault_is_laid_before_it_goes_and_healed_once_it_is_back() -> None:
    for name in ("apiserver-killed", "apiserver-stopped-25s", "etcd-killed", "etcd-stopped-20s"):
        for both in (pair_of(SCENES[name], SCENES["lease-renewed-in-year-0"]), pair_of(SCENES["leaf-deleted"], SCENES[name])):
            assert [API_SERVER in fault.touches for fault in both.faults] == [False, True]
    healed: list[str] = []
    away = replace(SCENES["etcd-killed"], faults=(Healed(name="API server", order=healed, touch=(API_SERVER,)),))
    both = pair_of(away, replace(SCENES["leaf-deleted"], faults=(Healed(name="leaf", order=healed),)))
    ground = SimpleNamespace(await_api=lambda: healed.append("it answers"))
    under_way = Play(cast(Ground, ground), both, random.Random(1))
    under_way.laid = [Laid(fault, 0.0, 0.0) for fault in both.faults]
    under_way.heal()
    assert healed == ["API server", "it answers", "leaf"] and not under_way.problems


def test_a_meter_that_may_be_believed_is_held_to_its_own_rack_only_where_nothing_else_is_wrong() -> None:
    shown = SCENES["meter-shows-the-other-rack"]
    assert set(say.BRAKED) <= {*shown.forbids, *shown.forbids_alone}
    both = pair_of(SCENES["limits-in-a-flurry"], shown)
    assert both.forbids == say.braked("rack-a1"), "whose meter is right"
    assert both.forbids_alone == ()
    for name in ("meter-reads-65535", "meter-gone", "meter-reads-0"):
        assert set(say.BRAKED) <= set(pair_of(SCENES["limits-in-a-flurry"], SCENES[name]).forbids), name


def test_scenes_are_picked_by_name_pairs_with_a_plus_and_a_wrong_name_is_told() -> None:
    assert [s.name for s in chosen("gpu-reset, leaf-deleted + meter-gone", pairs=0, seed=1)] == [
        "gpu-reset",
        "leaf-deleted + meter-gone",
    ]
    assert len(chosen(None, pairs=3, seed=1)) == len(SCENES) + 3
    with pytest.raises(LabError, match="there is no scene 'gpu-rest'"):
        chosen("gpu-rest", pairs=0, seed=1)


def test_the_table_has_its_place_in_the_page(tmp_path: Path) -> None:
    page = tmp_path / "safety.md"
    page.write_text(PAGE.read_text())
    rewrite(page, "a table")
    assert f"{BEGIN}\na table\n{END}" in page.read_text()
    page.write_text("nothing")
    with pytest.raises(LabError, match="no markers"):
        rewrite(page, "a table")


def test_the_pages_table_is_of_scenes_that_are_there_and_says_their_promises() -> None:
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (.+?) \|", PAGE.read_text().split(BEGIN)[1].split(END)[0], re.MULTILINE)
    told = {name: promise for name, promise in rows if name in SCENES}
    assert len(told) >= 45
    for name, promise in told.items():
        assert promise.startswith(SCENES[name].promise), f"{name}: play `make faults` again, or put the sentence right"


# ------------------------------------------------------------------------------------------------------------------- tools


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1000):
            self.request.sendall(data)


@pytest.fixture
def echo_port() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_held_relay_forwards_nothing_closes_nothing_and_delivers_late(echo_port: int) -> None:
    with Relays(echo_port) as relays:
        mine, others = relays.port("mine"), relays.port("others")
        assert relays.port("mine") == mine
        with socket.create_connection(("127.0.0.1", mine)) as held, socket.create_connection(("127.0.0.1", others)) as free:
            held.settimeout(0.5)
            free.settimeout(5)
            held.sendall(b"before")
            assert held.recv(100) == b"before"
            relays.hold("mine")
            time.sleep(0.1)
            held.sendall(b"meanwhile")
            with pytest.raises(TimeoutError):
                held.recv(100)
            free.sendall(b"free")
            assert free.recv(100) == b"free"
            relays.let_go("mine")
            held.settimeout(5)
            assert held.recv(100) == b"meanwhile"


SAY_TIME = "import sys, time\nfor _ in sys.stdin:\n print(time.time(), time.monotonic(), flush=True)"


@pytest.mark.parametrize("step_s", [5.0, -5.5])
def test_a_clock_is_stepped_for_one_process_while_it_runs_and_monotonic_time_goes_on(tmp_path: Path, step_s: float) -> None:
    clocks = Clocks(tmp_path)
    clocks.build()
    env = dict(clocks.environment("one"))
    with subprocess.Popen(
        [sys.executable, "-c", SAY_TIME], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin
        assert child.stdout

        def ask() -> tuple[float, float]:
            assert child.stdin
            assert child.stdout
            child.stdin.write("\n")
            child.stdin.flush()
            wall_s, monotonic_s = map(float, child.stdout.readline().split())
            return wall_s - time.time(), monotonic_s - time.monotonic()

        assert ask() == pytest.approx((0.0, 0.0), abs=0.5)
        clocks.step("one", step_s)
        assert ask() == pytest.approx((step_s, 0.0), abs=0.5)
        clocks.step("one", 0.0)
        assert ask() == pytest.approx((0.0, 0.0), abs=0.5)
        child.stdin.close()
