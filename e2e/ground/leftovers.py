"""What a run leaves outside its namespaces (cgroups, a scratch folder, mount points), and who removes it. Standard library only.

Theory: namespaces, and with them mounts, bridges, nft tables and processes, end with the run's first process, which the
kernel kills when whoever started it dies. The rest is removed by this small process, started as
`python -I -S leftovers.py FD RECORD`: it waits until the other end of FD is closed, by leaving or by death of any kind, and
tidies up then. Should it be killed as well, the next run does it: `sweep`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

PREFIX: Final = "splitwatt-e2e-"
SCRATCH_PARENT: Final = Path("/var/tmp")
CGROUPS: Final = Path("/sys/fs/cgroup")
END_S: Final = 30.0
_POLL_S: Final = 0.1
_RECORD: Final = "leftovers.json"


@dataclass(frozen=True, slots=True)
class Leftovers:
    """`scratch` is the run's folder, whose name is that of its cgroups too; `mount_points` are folders that the run made on the
    machine to mount over, outermost first."""

    scratch: str
    mount_points: Sequence[str] = ()

    @property
    def name(self) -> str:
        return Path(self.scratch).name

    def write(self) -> Path:
        path = Path(self.scratch) / _RECORD
        path.write_text(json.dumps(asdict(self)))
        return path


def cgroup_hierarchies() -> Sequence[Path]:
    """Roots in which a run's cgroup is made: each v1 hierarchy, or the one of v2."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [folder for folder in sorted(CGROUPS.iterdir()) if (folder / "cgroup.procs").exists() and folder.name != "unified"]


def make_cgroups(name: str) -> None:
    """A cgroup of this name in every hierarchy. Raises OSError."""
    for root in cgroup_hierarchies():
        folder = root / name
        folder.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):  # v1 begins with none, and takes no process then
            if (folder / file).exists() and not (folder / file).read_text().strip():
                (folder / file).write_text((root / file).read_text())
        if (root / "cgroup.controllers").exists():
            wanted = " ".join(f"+{each}" for each in (root / "cgroup.controllers").read_text().split())
            (root / "cgroup.subtree_control").write_text(wanted)


def join_cgroups(name: str) -> None:
    """Move this process into the run's cgroup in every hierarchy: a cgroup namespace made next has it as its root."""
    for root in cgroup_hierarchies():
        (root / name / "cgroup.procs").write_text(str(os.getpid()))


def _below(folder: Path) -> Iterator[Path]:
    """Cgroups below, deepest first."""
    for child in sorted(folder.iterdir()):
        if child.is_dir():
            yield from _below(child)
            yield child


def end_cgroups(name: str) -> Sequence[str]:
    """Kill what is left in the run's cgroups and remove them; those that would not go."""
    left = []
    for root in cgroup_hierarchies():
        top = root / name
        deadline_s = time.monotonic() + END_S
        while top.exists():
            for folder in (*_below(top), top):
                try:
                    for pid in (folder / "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                    folder.rmdir()
                except OSError:
                    continue  # busy for a moment longer, or gone
            if top.exists():
                if time.monotonic() > deadline_s:
                    left.append(str(top))
                    break
                time.sleep(_POLL_S)
    return left


def remove(leftovers: Leftovers) -> Sequence[str]:
    """All of it; one sentence for each thing that stayed."""
    said = [f"the cgroup {path} is still in use" for path in end_cgroups(leftovers.name)]
    for folder in reversed(leftovers.mount_points):
        try:
            Path(folder).rmdir()
        except OSError:
            continue  # somebody else has put something there meanwhile: it is theirs
    shutil.rmtree(leftovers.scratch, ignore_errors=True)
    if Path(leftovers.scratch).exists():
        said.append(f"the folder {leftovers.scratch} could not be removed whole")
    return said


def sweep() -> Sequence[str]:
    """What runs before this one left, whose own process for it was killed. Call it under the lock of all runs. What it did."""
    done = []
    for record in sorted(SCRATCH_PARENT.glob(f"{PREFIX}*/{_RECORD}")):
        found = json.loads(record.read_text())
        said = remove(Leftovers(str(record.parent), found["mount_points"]))
        done.append(f"removed what {record.parent.name} left" + "".join(f"; {each}" for each in said))
    for root in cgroup_hierarchies():
        for folder in root.glob(f"{PREFIX}*"):
            end_cgroups(folder.name)
    return done


def main() -> None:
    descriptor, record = int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    os.chdir("/")
    with os.fdopen(descriptor, "rb") as other_end:
        other_end.read()
    for sentence in remove(Leftovers(record["scratch"], record["mount_points"])):
        sys.stderr.write(f"{sentence}\n")


if __name__ == "__main__":
    main()
