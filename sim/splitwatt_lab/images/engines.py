"""Container engines by their command lines: docker, podman, buildah.

Their words differ in places, and this module is where. Nothing is built or run over a bridge: the default of each would make
one on the machine, with its firewall rules, and leave both behind.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError, log_tail

NAMES: Final = ("docker", "podman", "buildah")
ASK_S: Final = 60.0
_TICK_S: Final = 1.0
_LAST_LINES: Final = 5

Tick = Callable[[float], None]
"""Told now and then for how many seconds something has run."""


@dataclass(frozen=True, slots=True)
class ContainerEngine:
    """`name`: one of NAMES. `program`: its path."""

    name: str
    program: str

    # ------------------------------------------------------------------------------------------------------- images

    def has(self, image: str) -> bool:
        kind = ["--type", "image"] if self.name == "buildah" else []
        verb = ["inspect"] if self.name == "buildah" else ["image", "inspect"]
        return self._ask([*verb, *kind, image]).returncode == 0

    def pull(self, image: str, log: Path, tick: Tick) -> None:
        """Raises LabError."""
        self._work(["pull", image], log, tick, what=f"pulling {image}")

    def build(self, arguments: Sequence[str], log: Path, tick: Tick) -> None:
        """`arguments` after `build`, the context last. Raises LabError."""
        keep = ["--layers"] if self.name == "buildah" else []
        self._work(["build", *keep, "--network", "host", *arguments], log, tick, what="the build")

    def import_root(self, tar: Path, image: str, log: Path, tick: Tick) -> None:
        """An image whose one layer is this tar of a root file system. Raises LabError."""
        if self.name != "buildah":
            self._work(["import", str(tar), image], log, tick, what=f"importing {tar}")
            return
        made = self._answer(["from", "scratch"])
        try:
            self._work(["add", made, str(tar)], log, tick, what=f"adding {tar}")
            self._work(["commit", made, image], log, tick, what=f"committing {image}")
        finally:
            self._ask(["rm", made])

    def save(self, image: str, target: Path, log: Path, tick: Tick) -> None:
        """An archive that docker, podman, containerd and kind load: of the OCI's layout, from docker of what it writes. It is
        there whole or not at all. Raises LabError."""
        fresh = target.with_name(f".{target.name}.new")
        fresh.unlink(missing_ok=True)
        command = {
            "docker": ["save", "--output", str(fresh), image],
            "podman": ["save", "--format", "oci-archive", "--output", str(fresh), image],
            "buildah": ["push", image, f"oci-archive:{fresh}:{image}"],
        }
        self._work(command[self.name], log, tick, what=f"saving {image}")
        fresh.rename(target)

    def size_mb(self, image: str) -> float:
        """All layers together, unpacked, in 10^6 bytes. Raises LabError."""
        return int(self._answer(["image", "inspect", "--format", "{{.Size}}", image])) / 1e6

    # --------------------------------------------------------------------------------------------------- containers

    def runner(self) -> ContainerEngine:
        """Who starts containers of these images: podman has buildah's. Raises LabError."""
        if self.name != "buildah":
            return self
        podman = shutil.which("podman")
        if podman is None:
            raise LabError(
                "buildah starts no containers of an image: install podman, which sees buildah's images, to check or measure them"
            )
        return ContainerEngine("podman", podman)

    def pid(self, container: str) -> int | None:
        """Of its first process, as this machine numbers it; None while there is none."""
        result = self._ask(["inspect", "--format", "{{.State.Pid}}", container])
        return int(result.stdout) or None if result.returncode == 0 else None

    def remove(self, container: str) -> None:
        self._ask(["rm", "--force", container])

    # -------------------------------------------------------------------------------------------------------- below

    def _ask(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self.program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASK_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"`{self.name} {' '.join(arguments)}` did not end within {ASK_S:g} s") from error

    def _answer(self, arguments: Sequence[str]) -> str:
        result = self._ask(arguments)
        if result.returncode != 0:
            raise LabError(f"`{self.name} {' '.join(arguments)}` failed: {' '.join(result.stderr.split())}")
        return result.stdout.strip()

    def _work(self, arguments: Sequence[str], log: Path, tick: Tick, *, what: str) -> None:
        """Output goes to `log`."""
        run_logged([self.program, *arguments], log, tick, what=f"{self.name}: {what}")


def run_logged(command: Sequence[str], log: Path, tick: Tick, *, what: str, env: Mapping[str, str] | None = None) -> None:
    """Run to the end; its output is added to `log`. Raises LabError with its last words."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    with log.open("a") as out:
        out.write(f"$ {' '.join(command)}\n")
        out.flush()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env)
        try:
            while True:
                tick(time.monotonic() - started_s)
                try:
                    code = process.wait(_TICK_S)
                    break
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            process.terminate()  # an engine that is asked clears up after itself
            process.wait()
            raise
    if code != 0:
        raise LabError(f"{what} failed ({log}): {' | '.join(log_tail(log)[-_LAST_LINES:])}")


def find(wanted: str) -> ContainerEngine:
    """The engine of this name, or with "" the first that this machine can use. Raises LabError."""
    if wanted:
        name = Path(wanted).name
        program = shutil.which(wanted)
        if name not in NAMES:
            raise LabError(f"ENGINE={wanted} is none of {', '.join(NAMES)}")
        if program is None:
            raise LabError(f"ENGINE={wanted} is not on PATH: install it, or leave ENGINE out to take what is there")
        return ContainerEngine(name, program)
    for name in NAMES:
        program = shutil.which(name)
        if program is not None and (name != "docker" or _daemon_answers(program)):
            return ContainerEngine(name, program)
    raise LabError("no container engine is here: install podman, buildah, or docker with its daemon")


def _daemon_answers(docker: str) -> bool:
    """docker is a client; podman and buildah do their work themselves."""
    try:
        told = subprocess.run(
            [docker, "version", "--format", "{{json .Server}}"], capture_output=True, text=True, timeout=ASK_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return told.returncode == 0 and json.loads(told.stdout or "null") is not None
