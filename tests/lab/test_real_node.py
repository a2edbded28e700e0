"""The smoke on a kubelet of our own: images start, the agent is Ready, one cap is enforced. And a run of the end-to-end scenarios
leaves nothing on the machine, when it ends, when it is interrupted, and when it is killed.

One file, for two runs at once would lay their folders over the same places. Root on Debian or Ubuntu: elsewhere it says that it
was not run, and where `CI` is set it is never left out.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from ground import inside, leftovers, run
from support.waiting import eventually

REPOSITORY = Path(__file__).resolve().parents[2]
WAIT_S = 60.0
RUN = "import sys; from ground import run\nwith run.alone(): sys.exit(run.isolated(sys.argv[1:], env={}, keep=False))"
BUSY = """
mkdir /sys/fs/cgroup/memory/pod 2>/dev/null || mkdir /sys/fs/cgroup/pod
ip link add cni0 type bridge
nft add table inet e2e 2>/dev/null
touch /var/lib/kubelet/here /etc/containers/here
setsid sleep 3605 &
echo ready
"""

SMOKE = "e2e/test_1_install.py::test_the_readme_installs_and_a_first_budget_is_kept"
MINUTES = 20


def why_not() -> str:
    """Why this machine cannot; empty: it can."""
    if os.geteuid() != 0:
        return "namespaces and cgroups of a node are root's to make: run it as root"
    return "" if shutil.which("apt-get") else "programs of a node are installed with apt-get, which is not here"


def left_out(why: str, environment: Mapping[str, str]) -> bool:
    """Whether what cannot run is told as not run; in CI it fails."""
    return bool(why) and not environment.get("CI")


def why_not_ready(ready: subprocess.CompletedProcess[str]) -> str:
    """Packages or builds that cannot be had; empty: all is there, or something else is wrong."""
    last = " ".join(ready.stderr.strip().splitlines()[-1:])
    return f"a node cannot be made ready here: {last}" if ready.returncode == os.EX_UNAVAILABLE else ""


pytestmark = pytest.mark.skipif(left_out(why_not(), os.environ), reason=f"not run: {why_not()}")


@pytest.fixture(autouse=True)
def the_machine_as_it_was() -> Iterator[None]:
    """Nothing of a run is there before, and nothing after."""
    assert not what_is_left(), "another run is under way, or was killed and left this; the next `make e2e` sweeps it"
    before = state()
    yield
    eventually("nothing is left", lambda: not what_is_left(), within_s=WAIT_S)
    assert state() == before


def what_is_left() -> list[str]:
    folders = [str(path) for path in leftovers.SCRATCH_PARENT.glob(f"{leftovers.PREFIX}*")]
    return folders + [str(path) for root in leftovers.cgroup_hierarchies() for path in root.glob(f"{leftovers.PREFIX}*")]


def state() -> tuple[object, ...]:
    """Mount points and links of this machine, and the folders that a run lays others over."""
    mounts = sorted(line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if "splitwatt" in line)
    links = sorted(path.name for path in Path("/sys/class/net").iterdir())
    return mounts, [link for link in links if link in ("cni0", "splitwatt0")], inside.missing_mount_points()


def begin(script: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "e2e")}
    command = [sys.executable, "-c", RUN, "bash", "-c", script]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_it_is_never_left_out_in_ci() -> None:
    unavailable = subprocess.CompletedProcess(
        [], os.EX_UNAVAILABLE, stdout="", stderr="said before\ne2e: there is no `go` on PATH\n"
    )
    why = why_not_ready(unavailable)
    assert "there is no `go` on PATH" in why
    assert left_out(why, {}) and not left_out(why, {"CI": "true"})
    broken = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback")
    assert not left_out(why_not_ready(broken), {}), "what is broken fails everywhere"


def test_when_it_ends() -> None:
    process = begin(BUSY + "exit 7")
    assert process.wait(WAIT_S) == 7, "the command's own exit code"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_when_it_is_interrupted_or_killed(number: signal.Signals) -> None:
    process = begin(BUSY + "sleep 3606")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert what_is_left(), "a run that is under way has its scratch folder"
    if number is signal.SIGINT:
        os.killpg(process.pid, number)  # as the terminal's Ctrl-C, to the whole foreground group
    else:
        process.kill()
    process.wait(WAIT_S)
    process.stdout.close()


def test_what_a_killed_run_left_is_swept_by_the_next() -> None:
    """Whose own janitor was killed as well."""
    scratch = leftovers.SCRATCH_PARENT / f"{leftovers.PREFIX}test"
    scratch.mkdir()
    point = Path("/run") / f"{leftovers.PREFIX}point"
    point.mkdir()
    leftovers.Leftovers(str(scratch), [str(point)]).write()
    leftovers.make_cgroups(scratch.name)
    with run.alone():  # one that is under way is not swept
        assert leftovers.sweep() and not point.exists()


def play(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ground.run", "--on=node", *arguments]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "e2e")}
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)


@pytest.mark.timeout(60 * MINUTES)
def test_the_chart_installs_on_a_real_kubelet() -> None:
    ready = play("--prepare")
    if left_out(why_not_ready(ready), os.environ):
        pytest.skip(f"not run: {why_not_ready(ready)}")
    assert ready.returncode == 0, ready.stdout[-4000:] + ready.stderr[-4000:]
    result = play("--as-is", SMOKE)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-4000:]
