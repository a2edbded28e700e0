"""The ground that the environment names, once for all scenarios, and what each run leaves to read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from splitwatt_lab.errors import LabError
from splitwatt_lab.judge import Judge, complaints

from ground.any import KubeconfigCluster, Theirs
from ground.cluster import Cluster, NotHereError
from ground.kind import KindCluster
from ground.node import NodeCluster
from ground.run import GROUND_VARIABLE, NODE_IMAGE_VARIABLE, OUT, SCRATCH_VARIABLE, THEIRS_VARIABLE
from ground.site import Site, collect

_RESULTS: dict[str, dict[str, object]] = {}
_STARTED_S = time.time()


def _make(ground: str) -> Cluster:
    if ground == "node":
        return NodeCluster(Path(os.environ[SCRATCH_VARIABLE]))
    if ground == "kind":
        return KindCluster(Path(os.environ[SCRATCH_VARIABLE]), image=os.environ[NODE_IMAGE_VARIABLE])
    if not ground:
        raise pytest.UsageError("scenarios are started by `make e2e`")
    theirs = Theirs(**json.loads(os.environ[THEIRS_VARIABLE]))
    try:
        return KubeconfigCluster(Path(ground), Path(os.environ[SCRATCH_VARIABLE]), theirs)
    except LabError as error:
        pytest.exit(str(error), returncode=os.EX_UNAVAILABLE)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    ground = _make(os.environ.get(GROUND_VARIABLE, ""))
    _grounds.append(ground)
    yield ground
    _grounds.clear()
    ground.close()


@pytest.fixture(scope="session")
def site(cluster: Cluster) -> Iterator[Site]:
    """Furnished, and Splitwatt not yet there."""
    made = Site(cluster)
    yield made
    made.close()


@pytest.fixture(scope="session")
def installed(site: Site) -> Site:
    """By the README's words, with its budgets in force; harmless where it is installed already."""
    site.install()
    site.first_budget()
    return site


@pytest.fixture
def judged(installed: Site, request: pytest.FixtureRequest) -> Iterator[Judge]:
    """Every budget is kept while the test lasts, and somebody looked all the time."""
    judge = installed.judge()
    started_s = time.monotonic()
    judge.start()
    yield judge
    judge.stop()
    said = complaints(judge.counts, list(judge.wiring.feeds), time.monotonic() - started_s)
    over = {name: count.either_over_s for name, count in judge.counts.items() if count.either_over_s}
    assert not over, f"seconds in which draw or caps were above a limit in force: {over}"
    assert not said, said


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, None]:
    yield from _left_out()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, None]:
    yield from _left_out()


def _left_out() -> Generator[None, object, None]:
    try:
        yield
    except NotHereError as why:
        pytest.skip(str(why))


_grounds: list[Cluster] = []


def _collect(item: pytest.Item) -> None:
    """Best of what is still to be seen; a cluster that is broken must not hide why."""
    for ground in _grounds:
        try:
            collect(ground, Path(os.environ[SCRATCH_VARIABLE]) / "logs" / item.name)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"nothing could be collected: {error}", file=sys.stderr)  # noqa: T201


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    known = _RESULTS.setdefault(item.name, {"passed": True, "seconds": 0.0})
    known["seconds"] = round(float(str(known["seconds"])) + report.duration, 1)
    if report.failed:
        known["passed"] = False
        _collect(item)
    elif report.skipped:
        known["passed"] = None
    return report


def pytest_sessionfinish() -> None:
    if not _RESULTS:
        return
    line = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_STARTED_S)),
        "ground": os.environ.get(GROUND_VARIABLE, ""),
        "seconds": round(time.time() - _STARTED_S, 1),
        "scenarios": _RESULTS,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with (OUT.parent / "e2e.json").open("a") as file:
        file.write(json.dumps(line) + "\n")
