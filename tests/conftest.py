"""What every test may use: settings of hypothesis, and one real control plane for all tests of a session that ask for it.

Each test works in namespaces of its own. Hypothesis prints the blob that repeats a failure, and never fails for a slow machine.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.toolbuild import Console
from support.sizes import EXAMPLES

settings.register_profile(
    "splitwatt", max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("splitwatt")

REPOSITORY = Path(__file__).resolve().parents[1]
LONGEST_FIRST = (
    "protocol/test_random_events.py",
    "lab/test_faults_fast.py",
    "protocol/test_vanishing.py",
    "lab/test_demo_verdict.py",
    "release/test_wheel.py",
    "sim/test_power_law.py",
    "core/test_policies_lookout.py",
    "operator/power/test_budgets.py",
    "protocol/test_stateful.py",
    "agent/test_restored_store.py",
    "sim/test_scenario.py",
    "cli/test_on_a_site.py",
    "agent/test_lifecycle.py",
    "operator/power/test_apiserver.py",
    "operator/power/test_in_a_container.py",
    "operator/test_router_process.py",
    "operator/test_rollouts.py",
    "sim/test_plan_sweep.py",
    "operator/test_serving_schedulers.py",
)
"""Files of a minute and more, longest first: begun late, one of them would run on when every other worker is done."""


COVERING = (REPOSITORY / "tests" / "core", REPOSITORY / "tests" / "protocol")
"""Whose tests are watched line by line: they cover the core by themselves, and watching costs every other test a third."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent not in COVERING:
            item.add_marker(pytest.mark.no_cover)
    rank = {REPOSITORY / "tests" / name: at for at, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Started by the first test that asks for it. Whoever stops a component of it starts it again."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), progress=Console()) as plane:
        yield plane


@pytest.fixture(scope="session")
def crds(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with every generated CustomResourceDefinition of the repository established."""
    files = sorted((REPOSITORY / "crds").glob("*.yaml"))
    for file in files:
        control_plane.kubectl("apply", "--server-side", "-f", file)
        control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", file)
    return control_plane


@pytest.fixture
def make_namespace(control_plane: ControlPlane) -> Iterator[Callable[[], str]]:
    """Makes fresh namespaces with their service account; deleted after the test without waiting for it."""
    made: list[str] = []

    def make() -> str:
        name = f"test-{uuid.uuid4().hex[:10]}"
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        control_plane.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
        made.append(name)
        control_plane.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=30s")
        return name

    yield make
    if made:
        control_plane.kubectl("delete", "namespace", *made, "--wait=false", "--ignore-not-found")


@pytest.fixture
def namespace(make_namespace: Callable[[], str]) -> str:
    return make_namespace()
