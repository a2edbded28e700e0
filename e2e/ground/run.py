"""Prepare, then play the scenarios in namespaces of their own: `python -m ground.run --on node|kind|KUBECONFIG [for pytest]`.

Order: programs, images and tools are made ready first, on the machine, for that needs its network; the scenarios then run
where nothing of the machine can be changed but the caches. One run at a time: two would lay their folders over the same places.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError
from splitwatt_lab.toolbuild import Console, ensure_tools
from splitwatt_lab.toolchain import cache_directory

from ground import dns, host, images, inside, kind, leftovers, lws, tools, vllm
from ground.any import KubeconfigCluster, Theirs
from ground.cluster import VLLM_VARIABLE

REPOSITORY: Final = Path(__file__).resolve().parents[2]
OUT: Final = REPOSITORY / "out" / "e2e"
GROUND_VARIABLE: Final = "SPLITWATT_E2E_ON"
SCRATCH_VARIABLE: Final = "SPLITWATT_E2E_SCRATCH"
NODE_IMAGE_VARIABLE: Final = "SPLITWATT_E2E_NODE_IMAGE"
THEIRS_VARIABLE: Final = "SPLITWATT_E2E_THEIRS"
OWN_GROUNDS: Final = ("node", "kind")
_PR_SET_PDEATHSIG: Final = 1


def say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


@contextmanager
def timed(what: str) -> Iterator[None]:
    started_s = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - started_s:.1f} s")


@contextmanager
def alone() -> Iterator[None]:
    """Raises LabError while another run is under way on this machine."""
    path = cache_directory() / "e2e" / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError("another end-to-end run is under way on this machine; wait for its end") from None
        yield


def prepare(ground: str, *, images_as_they_are: bool) -> Mapping[str, str]:
    """Everything that needs the machine's network; what the scenarios are told of it. Raises LabError."""
    with timed("programs of the machine"):
        host.ensure(host.NEEDS[ground])
    with timed("tools"):
        ensure_tools(Console())
        tools.ensure(names=tools.FOR_NODE if ground == "node" else None, progress=Console())
        dns.program(Console())
        if ground == "kind":
            lws.ensure(Console())
    if not images_as_they_are:
        with timed("images"):
            images.ensure(REPOSITORY)
    told = {VLLM_VARIABLE: ""}
    if vllm.wanted():
        with timed("vLLM for CPUs"):
            told[VLLM_VARIABLE] = str(vllm.ensure())
    else:
        say(f"the scenarios of real vLLM are left out: {vllm.LEFT_OUT_VARIABLE}=0")
    if ground == "kind":
        with timed("node image"):
            told[NODE_IMAGE_VARIABLE] = kind.node_image()
    return told


def isolated(command: Sequence[str], *, env: Mapping[str, str], keep: bool) -> int:
    """Run `command` in namespaces of its own, beneath a scratch folder that ends with it. Its exit code."""
    for sentence in leftovers.sweep():
        say(sentence)
    scratch = Path(tempfile.mkdtemp(prefix=leftovers.PREFIX, dir=leftovers.SCRATCH_PARENT))
    scratch.chmod(0o755)
    made = inside.missing_mount_points()
    record = leftovers.Leftovers(str(scratch), made).write()
    read_end, write_end = os.pipe()
    janitor = subprocess.Popen(
        [sys.executable, "-I", "-S", leftovers.__file__, str(read_end), str(record)],
        pass_fds=[read_end],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # the terminal's Ctrl-C must not end it
    )
    os.close(read_end)
    try:
        for folder in made:
            Path(folder).mkdir(exist_ok=True)
        leftovers.make_cgroups(scratch.name)
        code = _in_namespaces(scratch, command, env)
        if keep:
            kept = OUT / "kept"
            subprocess.run(["rm", "-rf", str(kept)], check=True)
            subprocess.run(["cp", "-rL", f"{scratch}/logs", str(kept)], check=False)
        return code
    finally:
        os.close(write_end)
        janitor.wait()


def _in_namespaces(scratch: Path, command: Sequence[str], env: Mapping[str, str]) -> int:
    prctl = ctypes.CDLL(None).prctl

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        leftovers.join_cgroups(scratch.name)

    kinds = ["--net", "--mount", "--pid", "--uts", "--ipc", "--cgroup"]
    namespaces = ["unshare", *kinds, "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        [*namespaces, "--", sys.executable, "-I", "-S", inside.__file__, str(scratch), *command],
        env={**os.environ, **env, SCRATCH_VARIABLE: str(scratch)},
        preexec_fn=before_exec,  # noqa: PLW1509 - this process has one thread
    )
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # pytest got it too, and tidies up


def on_theirs(kubeconfig: Path, theirs: Theirs, command: Sequence[str], env: Mapping[str, str]) -> int:
    """On the cluster of a kubeconfig, without namespaces of our own; logs stay. The exit code. Raises LabError where its
    owner did not say enough: the warnings must be read before anything begins, and pytest would swallow them."""
    scratch = OUT / "theirs"
    subprocess.run(["rm", "-rf", str(scratch)], check=True)
    scratch.mkdir(parents=True)
    KubeconfigCluster(kubeconfig, scratch, theirs).close()
    env = {**env, THEIRS_VARIABLE: json.dumps(asdict(theirs))}
    return subprocess.run(
        command, env={**os.environ, **env, SCRATCH_VARIABLE: str(scratch)}, cwd=REPOSITORY, check=False
    ).returncode


def failed_before() -> list[str]:
    """The scenarios that failed in the last run, as pytest's arguments. Raises LabError where there was none."""
    results = OUT.parent / "e2e.json"
    try:
        scenarios = json.loads(results.read_text().splitlines()[-1])["scenarios"]
    except (OSError, IndexError, ValueError, KeyError) as error:
        raise LabError(f"{results} tells of no run before: leave --failed out") from error
    names = sorted({name.split("[")[0] for name, row in scenarios.items() if row["passed"] is False})
    if not names:
        raise LabError(f"nothing failed in the last run of {results}: leave --failed out")
    say(f"once more, on a cluster of its own: {', '.join(names)}")
    return ["-k", " or ".join(names)]


def names_tests(arguments: Sequence[str]) -> bool:
    """Some of pytest's arguments are files; else it would take the tests of the whole repository."""
    return any((REPOSITORY / each.split("::")[0]).exists() for each in arguments if not each.startswith("-"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="ground.run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--on", default="kind", metavar="GROUND", help="node, kind, or the path of a kubeconfig (default: kind)")
    theirs = parser.add_argument_group("of the cluster of a kubeconfig")
    theirs.add_argument("--may-change", action="store_true", help="it may be changed, as the warnings say")
    theirs.add_argument("--registry", default="", help="where our images were pushed, and it pulls from")
    theirs.add_argument("--prometheus", default="", metavar="URL", help="who scrapes it and its meters, as its pods dial it")
    theirs.add_argument("--runtime-class", default="", metavar="NAME", help="by which pods get NVIDIA's driver, if by one")
    parser.add_argument("--prepare", action="store_true", help="only make everything ready")
    parser.add_argument("--as-is", action="store_true", help="take the images that lie in out/images")
    parser.add_argument("--failed", action="store_true", help="play what failed in the last run")
    parser.add_argument("--keep", action="store_true", help="keep the logs below out/e2e/kept")
    given, rest = parser.parse_known_args()
    ground = given.on if given.on in OWN_GROUNDS else str(Path(given.on).resolve())
    env = {GROUND_VARIABLE: ground, "PYTHONPATH": f"{REPOSITORY / 'e2e'}:{REPOSITORY / 'tests'}"}
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        rest += failed_before() if given.failed else []
        plugins = ["-p", "no:cacheprovider", "-p", "ground.fixtures", f"--junitxml={OUT / 'junit.xml'}"]
        command = [sys.executable, "-m", "pytest", *plugins, *rest, *([] if names_tests(rest) else ["e2e"])]
        if given.on not in OWN_GROUNDS:
            theirs_says = Theirs(given.may_change, given.registry, given.prometheus, given.runtime_class)
            return on_theirs(Path(ground), theirs_says, command, env)
        with alone():
            env |= prepare(ground, images_as_they_are=given.as_is)
            os.chdir(REPOSITORY)
            return 0 if given.prepare else isolated(command, env=env, keep=given.keep)
    except LabError as error:
        say(f"e2e: {error}")
        return os.EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
