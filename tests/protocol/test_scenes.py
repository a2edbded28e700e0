"""Each scene that once broke the protocol, by name, on the core's real keeper and enforcer."""

import pytest
from support import power_scenes, scenes, scenes_restarted, scenes_vanished

SCENES = {**scenes.SCENES, **scenes_vanished.SCENES, **scenes_restarted.SCENES}


@pytest.mark.parametrize("name", SCENES)
def test_scene(name: str) -> None:
    SCENES[name]()


def test_lower_first() -> None:
    power_scenes.lower_first()


def test_settle_time() -> None:
    power_scenes.settle_time()


def test_a_dead_agent_is_charged_its_default_once_its_boot_is_unproven() -> None:
    power_scenes.a_dead_agent_is_charged_its_default_once_its_boot_is_unproven()


def test_a_lying_setter_is_never_acknowledged() -> None:
    power_scenes.a_lying_setter_is_never_acknowledged()
