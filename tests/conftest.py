"""What every test may use: settings of hypothesis, and one real control plane for all tests of a session that ask for it.

Each test works in namespaces of its own. Hypothesis prints the blob that repeats a failure, and never fails for a slow machine.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import coverage
import httpx
import pytest
from hypothesis import HealthCheck, settings
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.toolbuild import Console
from support.sizes import EXAMPLES
from support.waiting import eventually

settings.register_profile(
    "splitwatt", max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("splitwatt")

REPOSITORY = Path(__file__).resolve().parents[1]
LONGEST_FIRST = (
    "lab/test_real_node.py",
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
    "chart/test_chart_life.py",
    "operator/test_rolled_traffic.py",
    "operator/test_router_process.py",
    "operator/test_rollouts.py",
    "sim/test_plan_sweep.py",
    "operator/test_serving_schedulers.py",
    "operator/power/test_rights.py",
    "operator/power/test_vanished.py",
    "operator/test_serving_admission.py",
    "operator/test_serving_llmd.py",
    "operator/test_foreign_gate.py",
    "chart/test_chart_install.py",
    "agent/test_enforcing.py",
)
"""Files of a minute and more, longest first: begun late, one of them would run on when every other worker is done."""


COVERING = (REPOSITORY / "tests" / "core", REPOSITORY / "tests" / "protocol")
"""Whose tests are watched line by line: they cover the core by themselves, and watching costs every other test a third."""
WATCHED_EXAMPLES = 10
"""Of one search. What comes after them seldom reaches a new line, and takes twice as long while it is watched."""


HALF = os.environ.get("TESTS", "")
"""`computing` or `waiting`: of the tests only those that compute, or only the others (`make test` runs both side by side)."""
COMPUTING = tuple(REPOSITORY / "tests" / room for room in ("core", "protocol", "sim"))
STARTING = tuple(REPOSITORY / "tests" / "sim" / name for name in ("test_plan_objects.py", "test_plan_sweep.py"))
"""Files among them that start a control plane: of the waiting half."""


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if not HALF or not collection_path.is_relative_to(REPOSITORY / "tests") or collection_path == REPOSITORY / "tests":
        return None
    if collection_path.is_dir() and any(file.is_relative_to(collection_path) for file in STARTING):
        return None
    computes = any(collection_path.is_relative_to(room) for room in COMPUTING) and collection_path not in STARTING
    return True if computes != (HALF == "computing") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent not in COVERING:
            item.add_marker(pytest.mark.no_cover)
    rank = {REPOSITORY / "tests" / name: at for at, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """What is loaded and collected stays: the garbage collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A search is watched for its first examples."""
    watching = coverage.Coverage.current()
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    if watching is None or handle is None or item.get_closest_marker("no_cover"):
        return (yield)
    search, examples = handle.inner_test, itertools.count(1)

    @functools.wraps(search)
    def watched_at_first(*args: object, **kwargs: object) -> object:
        if next(examples) == WATCHED_EXAMPLES + 1:
            watching.stop()
        return search(*args, **kwargs)

    handle.inner_test = watched_at_first
    try:
        return (yield)
    finally:
        handle.inner_test = search
        if coverage.Coverage.current() is not watching:
            watching.start()


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
        control_plane.http.post("/api/v1/namespaces", json=manifest).raise_for_status()
        made.append(name)
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        eventually("its service account is there", lambda: control_plane.http.get(account).is_success)
        return name

    yield make
    for name in made:
        gone = control_plane.http.delete(f"/api/v1/namespaces/{name}")
        assert gone.is_success or gone.status_code in (httpx.codes.NOT_FOUND, httpx.codes.CONFLICT), gone.text


@pytest.fixture
def namespace(make_namespace: Callable[[], str]) -> str:
    return make_namespace()
