"""Building the control plane's programs from their pinned Go modules into the user's cache, once.

A lock file lets one build run at a time; a program appears in the cache by a rename, so it is there whole or not at all
and an interrupted build goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from splitwatt_lab.errors import LabError
from splitwatt_lab.toolchain import (
    BUILD_ENVIRONMENT,
    BUILD_FLAGS,
    PINS,
    STAGE_FILES,
    STAGES_FOLDER,
    TOOLS,
    Tool,
    Tools,
    assets_from_environment,
    found,
    stages_in,
    tools_directory,
)

_TICK_S: Final = 1.0
_ERROR_LINES: Final = 3
_SCRATCH: Final = ".build-"
KWOK_MODULE: Final = "sigs.k8s.io/kwok"


@dataclass(frozen=True, slots=True)
class BuildStep:
    """Where a build stands: the `number`th of `total` programs, for `elapsed_s` so far."""

    tool: str
    number: int
    total: int
    elapsed_s: float
    done: bool = False


Progress = Callable[[BuildStep], None]


def silent(_: BuildStep) -> None:
    """Progress that nobody watches."""


def ensure_tools(progress: Progress = silent) -> Tools:
    """All programs and Stage files, built where none was found. Raises LabError with one sentence."""
    assets = assets_from_environment()
    if assets is not None:
        return Tools(assets, stages_in(assets["kwok"].parent) or _cached_stages())
    return Tools(ensure_built(TOOLS, tools_directory(), progress), _cached_stages())


def ensure_built(tools: Sequence[Tool], folder: Path, progress: Progress = silent) -> dict[str, Path]:
    """Each program by name, built into the cache `folder` where none was found. Raises LabError with one sentence."""
    paths = {tool.name: path for tool in tools if (path := found(tool, folder)) is not None}
    missing = [tool for tool in tools if tool.name not in paths]
    return paths | _build_all(missing, folder, progress) if missing else paths


def _build_all(missing: Sequence[Tool], folder: Path, progress: Progress) -> dict[str, Path]:
    go = require_go([tool.name for tool in missing])
    built: dict[str, Path] = {}
    with _locked(folder, progress):
        for leftover in folder.glob(f"{_SCRATCH}*"):  # of a build that was killed: the lock is ours now
            shutil.rmtree(leftover, ignore_errors=True)
        for number, tool in enumerate(missing, start=1):
            target = folder / tool.name
            if not target.exists():  # another process may have built it while this one waited for the lock
                _build(go, tool, target, progress, number=number, total=len(missing))
            built[tool.name] = target
    return built


def _build(go: str, tool: Tool, target: Path, progress: Progress, *, number: int, total: int) -> None:
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=_SCRATCH) as scratch:
        output = Path(scratch) / tool.name
        with (Path(scratch) / "log").open("w+") as log:
            process = subprocess.Popen(
                [go, "build", *BUILD_FLAGS, "-ldflags", tool.ldflags, "-o", str(output), tool.package],
                cwd=tool.folder,
                env={**os.environ, **BUILD_ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                while True:
                    progress(BuildStep(tool.name, number, total, time.monotonic() - started_s))
                    try:
                        code = process.wait(_TICK_S)
                        break
                    except subprocess.TimeoutExpired:
                        continue
            finally:
                process.kill()  # does nothing to one that has ended
                process.wait()
            log.seek(0)
            if code != 0:
                lines = [line.strip() for line in log.read().splitlines() if line.strip()]
                raise LabError(f"building {tool.name} {tool.version} failed: {'; '.join(lines[-_ERROR_LINES:])}")
        output.rename(target)
    progress(BuildStep(tool.name, number, total, time.monotonic() - started_s, done=True))


def _cached_stages() -> Sequence[Path]:
    """kwok's Stage files from the cache; put there from kwok's module folder where they are missing."""
    folder = tools_directory()
    stages = stages_in(folder)
    if stages is not None:
        return stages
    source = module_folder(PINS / "kwok", KWOK_MODULE, wanted="kwok's Stage files") / "kustomize" / "stage"
    target = folder / STAGES_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for file in STAGE_FILES:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".stage-") as scratch:
            copy = Path(scratch) / Path(file).name
            shutil.copyfile(source / file, copy)
            copy.rename(target / copy.name)
    stages = stages_in(folder)
    assert stages is not None
    return stages


def module_folder(pins: Path, module: str, *, wanted: str) -> Path:
    """The sources of a module at the version that the go.mod in `pins` names, for what of it is `wanted`. Raises LabError."""
    return Path(download(module, within=pins, wanted=wanted)["Dir"])


def download(module: str, *, within: Path, wanted: str) -> Mapping[str, Any]:
    """What `go mod download -json` answers, asked in the folder `within`: at the version that its go.mod names, or that `module`
    itself does. Raises LabError."""
    result = subprocess.run(
        [require_go([wanted]), "mod", "download", "-json", module],
        cwd=within,
        env={**os.environ, **BUILD_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    answer: Mapping[str, Any] = json.loads(result.stdout) if result.stdout else {}
    if result.returncode != 0:
        raise LabError(f"{wanted} could not be fetched: {answer.get('Error') or result.stderr.strip()}")
    return answer


def require_go(wanted: Sequence[str]) -> str:
    """The program, or LabError that says for what it is missing."""
    go = shutil.which("go")
    if go is None:
        raise LabError(
            f"{', '.join(wanted)} must be built but there is no `go` on PATH; "
            f"install Go {_go_version()} or newer, or set KUBEBUILDER_ASSETS to a folder with the programs"
        )
    return go


def _go_version() -> str:
    for line in (PINS / "kubernetes" / "go.mod").read_text().splitlines():
        if line.startswith("go "):
            return line.split()[1].rsplit(".", 1)[0]
    return "1.26"


@contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    with (folder / ".lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(BuildStep("another build to finish", 0, 0, time.monotonic() - started_s))
                time.sleep(_TICK_S)
        yield


class Console:
    """Progress for a person: one line that counts on a terminal, a line now and then in a log."""

    EVERY_S: Final = 30.0

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._next_s = 0.0
        self._tool = ""

    def __call__(self, step: BuildStep) -> None:
        if step.tool != self._tool:
            self._tool, self._next_s = step.tool, 0.0
        verb = "waiting for" if step.total == 0 else ("built" if step.done else "building")
        place = f"[{step.number}/{step.total}] " if step.total else ""
        line = f"{place}{verb} {step.tool} ({step.elapsed_s:.0f} s)"
        if self._live:
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if step.done else ""))
        elif step.done or step.elapsed_s >= self._next_s:
            sys.stderr.write(f"{line}\n")
            self._next_s = step.elapsed_s + self.EVERY_S
        sys.stderr.flush()


def main() -> int:
    """`python -m splitwatt_lab.toolbuild`: have every program ready, and say where."""
    try:
        tools = ensure_tools(Console())
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    folders = sorted({str(path.parent) for path in tools.paths.values()})
    sys.stderr.write(f"control plane programs ready in {', '.join(folders)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
