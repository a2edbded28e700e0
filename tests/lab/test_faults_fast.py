"""The fastest scenes of `make faults`, one after the other on one site of real processes. Whoever adds a scene runs it there."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from splitwatt_lab.faults.catalogue import SCENES
from splitwatt_lab.faults.ground import Ground
from splitwatt_lab.faults.play import play
from splitwatt_lab.faults.report import line

FAST = [name for name, scene in SCENES.items() if scene.fast]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with Ground(tmp_path_factory.mktemp("faults"), seed=1) as ground:
        yield ground


@pytest.mark.parametrize("name", FAST)
def test_the_scene_keeps_its_promise(ground: Ground, name: str) -> None:
    outcome = play(ground, SCENES[name], random.Random(name))
    assert outcome.passed, line(outcome)
